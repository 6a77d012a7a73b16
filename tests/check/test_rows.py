"""Rows that are lost, labels that are swapped, rates that nobody trains with: planted, each line by itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.check import rates
from alignment.check.rates import learning_rate
from alignment.check.verdict import Grade
from alignment.config.data import BadRow, DataConfig, TrainSource
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.supervised import CPOConfig, DPOConfig, KTOConfig, RewardConfig, SFTConfig, SimPOConfig
from alignment.config.train import TrainConfig

ROWS, LABELS = "rows, train", "labels"
Verdicts = Callable[..., Any]


@pytest.fixture
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[dict[str, Any]]], TrainSource]:
    def write(rows: list[dict[str, Any]]) -> TrainSource:
        path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return TrainSource(str(path))

    return write


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_kto_of_two_prompts_is_tried_with_both(verdict: Verdicts, written: Any) -> None:
    """The nine shortest rows have the same prompt, and so has every other row of those that are tried."""
    same = [{"prompt": "Question 1 about the cow?", "completion": "It has legs.", "label": n % 2} for n in range(9)]
    other = {"prompt": "Question 2 about the dog and the owl?", "completion": "It can run and eat.", "label": 1}
    data = DataConfig(train=written([*same, other]))
    for name in ("one batch == several", "overfits a few rows"):
        assert verdict(name, KTOConfig, "pairs", data=data).grade is not Grade.fail


def test_rows_that_are_nearly_all_skipped_are_found(files: dict[str, str], verdict: Verdicts, written: Any) -> None:
    """As pairs are whose replies differ beyond the limits alone."""
    pairs = lines(files["pairs"])
    same = [{**row, "rejected": row["chosen"]} for row in pairs[1:]]
    found = verdict(ROWS, DPOConfig, "pairs", data=DataConfig(train=written([pairs[0], *same]), on_bad_row=BadRow.skip))
    assert found.grade is Grade.fail and "1 of the first 10 rows are used, 9 skipped (90.0%)" in found.figure
    few = [*pairs[1:], same[0]]
    found = verdict(ROWS, DPOConfig, "pairs", data=DataConfig(train=written(few), on_bad_row=BadRow.skip))
    assert found.grade is Grade.warn and "1 skipped (10.0%)" in found.figure


def test_prompts_that_nearly_all_lose_their_beginning_are_found(files: dict[str, str], verdict: Verdicts) -> None:
    data = DataConfig(train=TrainSource(files["demonstrations"]), max_prompt_length=8, max_length=128)
    found = verdict(ROWS, SFTConfig, "demonstrations", data=data)
    assert found.grade is Grade.fail
    assert "10 prompts lost their beginning (100.0%)" in found.figure and "data.max_prompt_length is 8" in found.figure


def test_prompts_that_are_laid_out_already_are_found(verdict: Verdicts, written: Any) -> None:
    rows = [{"prompt": "<|im_start|>user\ncow?<|im_end|>\n<|im_start|>assistant\n", "completion": "moo"}] * 2
    found = verdict(ROWS, SFTConfig, "demonstrations", data=DataConfig(train=written(rows)))
    assert found.grade is Grade.warn and "2 prompts begin as another template has them" in found.figure


@pytest.mark.parametrize("names", [("chosen_score", "rejected_score"), ("score_chosen", "score_rejected")])
@pytest.mark.parametrize("kind", [DPOConfig, RewardConfig], ids=lambda kind: kind.__name__)
def test_replies_whose_names_are_swapped_are_found_by_their_scores(
    kind: type, names: tuple[str, str], files: dict[str, str], verdict: Verdicts, written: Any
) -> None:
    for scores, grade in (((3.0, 8.0), Grade.fail), ((8.0, 3.0), Grade.ok)):
        rows = [{**row, **dict(zip(names, scores, strict=True))} for row in lines(files["pairs"])]
        found = verdict(LABELS, kind, "pairs", data=DataConfig(train=written(rows)))
        assert found.grade is grade and ("swapped" in found.figure) == (grade is Grade.fail)


def test_a_bad_row_that_is_skipped_is_no_label(files: dict[str, str], upto: Verdicts, written: Any) -> None:
    source = written(lines(files["demonstrations"]))
    Path(str(source.path)).write_text(Path(files["demonstrations"]).read_text() + "{\n")
    found = upto("learning rate", SFTConfig, "demonstrations", data=DataConfig(train=source, on_bad_row=BadRow.skip))
    assert LABELS not in [each.name for each in found]


@pytest.mark.parametrize("kind", rates.FULL, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("rank", [0, 8])
def test_a_hundred_times_the_usual_rate_is_found(kind: type, rank: int, files: dict[str, str]) -> None:
    """Of a model that others have trained; of a toy's rates nobody knows."""
    of_all = {SFTConfig: 2e-5, RewardConfig: 1e-5, DPOConfig: 5e-7, SimPOConfig: 5e-7, KTOConfig: 5e-7}
    usual = 8e-5 if kind is CPOConfig and rank else of_all.get(kind, 1e-6) * (10 if rank else 1)

    def at(rate: float, num_weights: int) -> Any:
        model = ModelConfig(path="somewhere", lora=LoraConfig(rank=rank))
        given: dict[str, Any] = {"model": model, "train": TrainConfig(max_steps=1, learning_rate=rate)}
        if kind is PPOConfig:
            given["reward"] = RewardShapingConfig(path="judge")
        config = kind(output_dir="run", data=DataConfig(train=TrainSource(files["pairs"])), **given)
        return learning_rate(config, num_weights)

    assert at(usual, 7_000_000_000).grade is at(usual, 135_000_000).grade is Grade.ok
    found = at(100 * usual, 7_000_000_000)
    assert found.grade is Grade.fail and "take train.learning_rate=" in found.figure
    assert at(100 * usual, 135_000_000).grade is (Grade.warn if (kind, rank) == (SFTConfig, 0) else Grade.fail)
    assert at(100 * usual, rates.TOY - 1).grade is Grade.warn
    assert at(usual / 1000, 7_000_000_000).grade is Grade.warn

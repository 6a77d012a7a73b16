"""What a pair may carry beside its replies: a `weight`, and a margin, each by the first loss of a run."""

import json
import math
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from alignment.losses import SimPOLoss

PAIRS = [
    {"prompt": "q", "chosen": "the cow", "rejected": "no", "rating": "significantly better"},
    {"prompt": "r", "chosen": "the owl can fly", "rejected": "a cow eats grass", "rating": "slightly better"},
    {"prompt": "s", "chosen": "it runs", "rejected": "it is a bee", "rating": "unsure"},
]
SMALL = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "train.max_steps=1", "log.progress=false"]


@pytest.fixture
def first(alignment: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[dict[str, float], str]]:
    """`first("tiny_dpo", rows, ...)`: the first step's metrics with all rows in it, and what was said."""

    runs = count()

    def call(recipe: str, rows: list[dict[str, Any]], *words: str) -> tuple[dict[str, float], str]:
        folder = f"run-{next(runs)}"
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = ["data=native", "data.train.path=rows.jsonl", f"batch.size={len(rows)}", f"output_dir={folder}"]
        ended = alignment("run", recipe, *SMALL, *data, *words)
        assert ended.code == 0, ended.err
        return json.loads((tmp_path / folder / "metrics.jsonl").read_text().splitlines()[0]), ended.out

    return call


@pytest.mark.parametrize("recipe", ["tiny_sft", "tiny_reward", "tiny_dpo", "tiny_orpo", "tiny_simpo", "tiny_cpo"])
def test_a_row_of_weight_three_counts_as_three(recipe: str, first: Callable[..., Any]) -> None:
    weighted, said = first(recipe, [{**PAIRS[0], "weight": 3}, PAIRS[1]])
    repeated, _ = first(recipe, [PAIRS[0]] * 3 + [PAIRS[1]])
    assert "rows count 1 to 3 in the loss, each by its `weight`" in said
    assert weighted["loss"] == pytest.approx(repeated["loss"], rel=1e-5)
    assert weighted["grad_norm"] == pytest.approx(repeated["grad_norm"], rel=1e-4)
    if recipe != "tiny_dpo":  # whose first loss is log 2 for every pair
        alike, said = first(recipe, PAIRS[:2])
        assert abs(alike["loss"] - weighted["loss"]) > 1e-4
        assert "rows count" not in said and "`weight`" not in said


def test_a_weight_that_is_none_names_its_row(alignment: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**PAIRS[0], "weight": w}) + "\n" for w in (1, "heavy")))
    ended = alignment("run", "tiny_cpo", *SMALL, "data=native", "data.train.path=rows.jsonl")
    assert (ended.code, len(ended.err)) == (2, 1)
    assert "rows.jsonl:2: field `weight`, what the row counts in the loss, must be a number" in ended.err[0]


def test_dpo_takes_the_reward_model_s_margins(first: Callable[..., Any]) -> None:
    """As nothing is learned yet, beta h = 0: the mean of log(1 + e^m)."""
    measured, said = first("tiny_dpo", PAIRS, "data.margin.scale=large", "loss.margin_scale=0.5")
    wanted = sum(math.log(1 + math.exp(0.5 * margin)) for margin in (3, 1, 0)) / 3
    assert measured["loss"] == pytest.approx(wanted, rel=1e-5)
    assert "data.margin.scale=large: DPO with an offset" in said
    assert first("tiny_dpo", PAIRS)[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)


def test_simpo_s_fields_are_its_config(first: Callable[..., Any]) -> None:
    """One pair: the loss from the metrics beside it."""
    measured, _ = first("tiny_simpo", PAIRS[:1], "loss.beta=3", "loss.gamma=0.7", "loss.cpo_alpha=0.2")
    z = measured["rewards/margin"] - 0.7
    assert measured["rewards/chosen"] == pytest.approx(3 * measured["logps/chosen"], rel=1e-5)
    assert measured["loss"] == pytest.approx(math.log(1 + math.exp(-z)) + 0.2 * measured["nll"], rel=1e-5)
    assert SimPOLoss().gamma != 0.7


def test_scaled_bradley_terry_weighs_by_the_margins(alignment: Callable[..., Any], first: Callable[..., Any]) -> None:
    """A pair of margin 3 costs three times what it costs without; without margins there is nothing to weigh by."""
    scaled, _ = first("tiny_reward", PAIRS[:1], "data.margin.scale=large", "loss.variant=scaled")
    plain, _ = first("tiny_reward", PAIRS[:1])
    assert scaled["loss"] == pytest.approx(3 * plain["loss"], rel=1e-5)
    ended = alignment("run", "tiny_reward", "data=toy", "loss.variant=scaled")
    assert (ended.code, len(ended.err)) == (2, 1)
    assert "data.margin.scale must not be none for loss.variant=scaled" in ended.err[0]

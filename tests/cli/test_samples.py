"""`log.samples`: the replies that a run shows, in `samples.jsonl`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.tasks import ppo

SMALL = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "generation.max_new_tokens=6"]
PPO = ["run", "tiny_ppo", *SMALL, "data.train.limit=12", "data.eval.limit=4", "batch.size=4", "checkpoint.every=1"]


def table(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().split("\n") if line]


def test_ppo_shows_each_iteration_and_evaluation_also_when_resumed(
    alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts with two replies of an iteration, two with one of an evaluation; a step cut short is shown once."""
    words = [*PPO, "train.max_steps=3", "train.eval_every=2", "log.samples=2"]
    assert alignment(*words, "output_dir=whole").code == 0
    rows = table(tmp_path / "whole")
    train, held_out = [(step, "train") for step in (1, 2, 3)], [(step, "eval") for step in (2, 3)]
    assert sorted((row["step"], row["split"]) for row in rows) == sorted(train * 4 + held_out * 2)
    for row in rows:
        assert row.keys() == {"step", "split", "prompt", "reply", "length", "finished", "score", "gold"}
        assert row["prompt"][-1]["role"] == "user" and 0 < row["length"] <= 6
        assert row["score"] == pytest.approx(row["gold"], abs=1e-6), "the gold function is the reward here"
    update, steps = ppo.update_actor_and_critic, []

    def cut(*arguments: Any, **settings: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return update(*arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(ppo, "update_actor_and_critic", cut)
        assert alignment(*words, "output_dir=cut").code == 130
    assert table(tmp_path / "cut")[-1]["step"] == 3, "shown before the step was learned from, and lost with it"
    assert alignment(*words, "output_dir=cut").code == 0
    assert table(tmp_path / "cut") == rows


def test_samples_are_a_matter_of_the_log(alignment: Callable[..., Any], tmp_path: Path) -> None:
    """Shown or not, generated one at a time or together, a run is the same."""

    def metrics(name: str, *more: str) -> list[dict[str, float]]:
        assert alignment(*PPO, "train.max_steps=1", f"output_dir={name}", *more).code == 0
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if "time/" not in key and "live" not in key} for row in rows]

    plain = metrics("plain", "log.samples=0")
    assert not (tmp_path / "plain" / "samples.jsonl").exists()
    assert metrics("shown", "log.samples=1") == plain
    assert metrics("apart", "generation.batch_size=1") == plain


def test_rejection_and_evaluation_show_theirs(alignment: Callable[..., Any], tmp_path: Path) -> None:
    words = [*SMALL, "data.train.limit=8", "num_samples=3", "log.samples=2", "output_dir=picked", "seed=1"]
    alignment("run", "tiny_rejection", *words)  # of an untrained model, few replies end: it may find none to pick
    rows = table(tmp_path / "picked")
    assert [len(rows), {row["split"] for row in rows}] == [6, {"train"}]
    assert [row["prompt"] for row in rows[:3]] == [rows[0]["prompt"]] * 3
    assert alignment(*PPO, "train.max_steps=1", "output_dir=a").code == 0
    words = ["runs={x: a, y: a}", "baseline=x", "data.eval.limit=4", "log.samples=2", "generation.max_new_tokens=6"]
    assert alignment("run", "tiny_evaluate", *words, "output_dir=compared").code == 0
    rows = table(tmp_path / "compared")
    assert [row["method"] for row in rows] == ["x", "x", "y", "y"]
    assert all(row.keys() >= {"prompt", "reply", "gold", "kl", "length", "finished"} for row in rows)


@pytest.mark.parametrize("task", ["sft", "reward", "dpo", "orpo", "simpo", "cpo"])
def test_a_task_that_makes_no_replies_has_none_to_show(alignment: Callable[..., Any], task: str) -> None:
    ended = alignment("run", f"tiny_{task}", "log.samples=1")
    assert ended.code == 2
    assert ended.err[0].endswith("log.samples must be 0 for a task that draws no replies to prompts, got 1")


def test_ppo_takes_no_sampling_that_its_log_probs_know_nothing_of(alignment: Callable[..., Any]) -> None:
    ended = alignment(*PPO, "train.max_steps=1", "generation.min_new_tokens=2")
    assert (ended.code, len(ended.err)) == (2, 1)
    assert "generation.min_new_tokens must be 0 for PPO" in ended.err[0]

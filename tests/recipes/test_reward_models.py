"""Reward models of single replies on the toy task, whole, through the installed command: each learns what it is
trained for, on held-out prompts, and is a reward model for what asks for one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.toy import scored, stepwise

COMMAND = str(Path(sys.executable).with_name("alignment"))
HELD_OUT = 200


def last_evaluation(recipe: str, folder: Path, *more: str) -> dict[str, float]:
    words = [COMMAND, "run", recipe, f"data.eval.limit={HELD_OUT}", f"output_dir={folder}", "log.progress=false", *more]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(row for row in reversed(logged) if "eval/loss" in row)


def test_steps_that_are_right_and_wrong_are_told_apart(tmp_path: Path) -> None:
    labels = [label for row in stepwise(HELD_OUT, 0, "eval") for label in row["labels"]]
    share = sum(labels) / len(labels)
    found = last_evaluation("tiny_reward_process", tmp_path / "process", "train.max_steps=100")
    print(f"steps right {share:.3f}", found)
    assert found["eval/rewards/accuracy"] > max(share, 1 - share) + 0.1
    assert found["eval/rewards/right"] > found["eval/rewards/wrong"] + 1


@pytest.mark.slow
def test_scores_are_foretold_and_a_ranking_begins_with_them(tmp_path: Path) -> None:
    scores = [row["score"] for row in scored(HELD_OUT, 0, "eval")]
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / len(scores)
    found = last_evaluation("tiny_reward_regression", tmp_path / "regression")
    print(f"variance {variance:.3f}", found)
    assert found["eval/scores/mean"] == pytest.approx(mean, abs=1e-6)
    assert found["eval/loss"] < 0.5 * variance
    begun = [f"model.path={tmp_path / 'regression' / 'model'}", "train.max_steps=1", "train.learning_rate=1e-9"]
    ranked = last_evaluation("tiny_reward", tmp_path / "ranking", *begun)
    print(ranked)
    assert ranked["eval/rewards/accuracy"] > 0.7

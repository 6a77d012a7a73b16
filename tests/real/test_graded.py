"""A reward model of some hundred graded pairs prefers the better reply where the rating is clearest.

Ten minutes on two cores, so it is run by hand: pytest -m 'real and slow' -s, which prints its table.
"""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]

NUM_PAIRS, MOST_TRAIN, MOST_TEST = 400, 1000, 2000  # characters of a pair, prompt included


def short_pairs(path: Path, most: int, count: int | None, to: Path) -> Path:
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    rows = [row for row in rows if len(row["prompt"] + row["chosen"] + row["rejected"]) <= most]
    kept = random.Random(0).sample(rows, count or len(rows))
    to.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return to


def test_accuracy_by_rating(shared: Path, real_model: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    name = "alpaca_eval_graded.{}.jsonl.gz"
    train = short_pairs(shared / "data" / name.format("train"), MOST_TRAIN, NUM_PAIRS, tmp_path / "train.jsonl")
    held_out = short_pairs(shared / "data" / name.format("test"), MOST_TEST, None, tmp_path / "test.jsonl")
    how = ["model=pretrained_lora", "model.gradient_checkpointing=false", "train.learning_rate=2e-4", "batch.size=16"]
    judge = run("reward", *how, f"model.path={real_model}", "data=graded", f"data.train.path={train}")
    prompts = [f"data.eval.path={held_out}", "data.eval.limit=2", "generation.max_new_tokens=1"]
    pairs = [f"pairs.eval.path={held_out}", "pairs.margin.scale=large", "pairs.max_length=1024"]
    words = [f"runs={{start: {real_model}}}", "baseline=start", f"reward={judge.model}", *prompts, *pairs]
    summary = json.loads((run("evaluate", *words).folder / "summary.json").read_text())["reward_model"]
    by_rating = {row["high"]: row["accuracy"] for row in summary["accuracy_by_margin"]}
    for margin, found in [*by_rating.items(), ("all", summary["accuracy"])]:
        print(f"margin {margin}: {found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}] of {found['n']}")
    assert by_rating.keys() == {0.0, 1.0, 2.0, 3.0}
    assert by_rating[3.0]["low"] > 0.5

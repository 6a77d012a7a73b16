"""Runs of the command that are killed, and those that nobody stopped."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SMALL = [
    "model.init.hidden_size=32",
    "model.init.intermediate_size=48",
    "data.train.limit=24",
    "data.eval.limit=4",
    "batch.size=4",
    "checkpoint.every=1",
    "log.progress=false",
]
STEPS = [*SMALL, "train.max_steps=5", "train.eval_every=2", "log.every=2"]
GROUPS = ["advantage.redraws=1", "advantage.drop_alike=true"]
CARRIED = ["critic.warmup=1", "ppo.ema=0.9", "kl.controller=adaptive", "kl.target=0.5", "kl.horizon=32"]
RUNS = {
    "dpo": ["run", "tiny_dpo", *STEPS, "reference.cache=false"],
    "ppo": ["run", "tiny_ppo", *STEPS, "ppo.epochs=2", "generation.max_new_tokens=6", *CARRIED],
    "grpo": ["run", "tiny_grpo", *STEPS, "ppo.replies=2", "generation.max_new_tokens=6", *GROUPS],
    "online_dpo": ["run", "tiny_online_dpo", *STEPS, "generation.max_new_tokens=6"],
    "kto": ["run", "tiny_kto", *STEPS, "reference.cache=false"],
    "best": ["run", "tiny_sft", *STEPS, "train.max_steps=8", "train.best.metric=eval/loss", "train.eval_every=1"],
}


def words(name: str, *more: str) -> list[str]:
    """The command of a run that takes about a second, in the folder `out`."""
    return [*RUNS[name], "output_dir=out", *more]


@dataclass
class Whole:
    """A run that nobody stopped."""

    folder: Path
    touches: int
    seconds: float


@pytest.fixture(scope="session")
def whole(runner: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`whole("dpo")`, made once."""
    made: dict[str, Whole] = {}

    def make(name: str) -> Whole:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "whole"
            start = time.perf_counter()
            ended = runner(words(name), folder)
            assert ended.code == 0, ended.said
            made[name] = Whole(folder / "out", ended.touches, time.perf_counter() - start)
        return made[name]

    return make


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    return words


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Path, Path], None]:
    return assert_same_run


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics but for the time they took, and weights, their average too where there is one, to the last bit."""
    assert rows(one) == rows(other)
    models = [{path.parent.name for path in folder.glob("model*/model.safetensors")} for folder in (one, other)]
    assert models[0] == models[1] and "model" in models[0]
    for model in models[0]:
        first, second = (load_file(folder / model / "model.safetensors") for folder in (one, other))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def rows(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in found]

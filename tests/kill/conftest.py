"""Runs of the command that can be killed: a server that has imported everything forks one process a run."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
REPLIES = [*STEPS, "generation.max_new_tokens=6", "reward.function=judge.parity"]
GROUPS = ["num_samples=2", "advantage.redraws=1", "advantage.drop_alike=true"]
CARRIED = ["critic.warmup=1", "ppo.ema=0.9", "kl.controller=adaptive", "kl.target=0.5", "kl.horizon=32"]
RUNS = {
    "dpo": ["run", "tiny_dpo", *STEPS, "reference.cache=false"],
    "aot": ["run", "tiny_dpo", *STEPS, "reference.cache=false", "loss.variant=aot"],
    "simpo": ["run", "tiny_simpo", *STEPS],
    "cpo": ["run", "tiny_cpo", *STEPS],
    "orpo": ["run", "tiny_orpo", *STEPS],
    "kto": ["run", "tiny_kto", *STEPS, "reference.cache=false"],
    "reward": ["run", "tiny_reward", *STEPS],
    "reward_regression": ["run", "tiny_reward_regression", *STEPS],
    "reward_process": ["run", "tiny_reward_process", *STEPS],
    "ppo": ["run", "tiny_ppo", *REPLIES, "ppo.epochs=2", *CARRIED],
    "grpo": ["run", "tiny_grpo", *REPLIES, *GROUPS],
    "rloo": ["run", "tiny_rloo", *REPLIES, *GROUPS],
    "reinforce_pp": ["run", "tiny_reinforce_pp", *REPLIES, "num_samples=2"],
    "online_dpo": ["run", "tiny_online_dpo", *REPLIES],
    "muon": ["run", "tiny_ppo", *REPLIES, "train.optimizer=muon"],
    "adamw_8bit": ["run", "tiny_dpo", *STEPS, "reference.cache=false", "train.optimizer=adamw_8bit"],
    "best": ["run", "tiny_sft", *STEPS, "train.max_steps=8", "train.best.metric=eval/loss", "train.eval_every=1"],
}


def words(name: str, *more: str) -> list[str]:
    """The command of a run that takes about a second, in the folder `out`."""
    return [*RUNS[name], "output_dir=out", *more]


@dataclass
class Ended:
    code: int
    touches: int
    said: str


class Runner:
    """Starts runs, one at a time, in a folder of their own."""

    def __init__(self) -> None:
        script = str(Path(__file__).with_name("runner.py"))
        self.server = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(
        self,
        words: list[str],
        folder: Path,
        *,
        at: int | None = None,
        signal: str = "SIGKILL",
        after_s: float | None = None,
        limit: int | None = None,
        env: dict[str, str] | None = None,
    ) -> Ended:
        """Hit by `signal` at its `at`-th touch of a file, or `after_s` seconds after its start, or not at all."""
        folder.mkdir(exist_ok=True)
        log = folder.with_suffix(".log")
        log.unlink(missing_ok=True)
        order = {"words": words, "folder": str(folder), "log": str(log), "at": at, "signal": signal, "limit": limit}
        self._say({**order, "env": env or {}})
        pid = self._hear()["pid"]
        if after_s is not None:
            time.sleep(after_s)
            subprocess.run(["kill", f"-{signal}", str(pid)], check=False, capture_output=True)
        end = self._hear()
        return Ended(end["code"], end["touches"], log.read_text())

    def _say(self, order: dict[str, Any]) -> None:
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self.server.stdout is not None
        return json.loads(self.server.stdout.readline())


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    assert runner.server.stdin is not None
    runner.server.stdin.close()
    runner.server.wait()


@dataclass
class Whole:
    """A run that nobody stopped."""

    folder: Path
    touches: int
    seconds: float


@pytest.fixture(scope="session")
def whole(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`whole("dpo")`, made once."""
    made: dict[str, Whole] = {}

    def make(name: str) -> Whole:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "whole"
            start = time.perf_counter()
            ended = runner(words(name), folder)
            assert ended.code == 0, ended.said
            norms = [row["grad_norm"] for row in rows(folder / "out") if "grad_norm" in row]
            assert norms and min(norms) > 0, "what learns nothing goes on from anywhere"
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

"""Runs of two processes that are killed at a random moment, or asked to stop: run again, they end as unbroken ones."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SMALL = [
    *("model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=24", "data.eval.limit=4"),
    *("batch.size=4", "batch.max_tokens=400", "checkpoint.every=1", "train.max_steps=12", "train.eval_every=5"),
    *("log.every=2", "log.progress=false", "launch.processes=2", "output_dir=run"),
]
RUNS = {
    "dpo": ["tiny_dpo", *SMALL, "distributed=zero2", "reference.cache=false"],
    "ppo": ["tiny_ppo", *SMALL, "distributed=zero3", "generation.max_new_tokens=6", "ppo.epochs=2"],
}
Start = Callable[[str, Path], "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def start(environment: Callable[..., dict[str, str]]) -> Start:
    def call(name: str, folder: Path) -> "subprocess.Popen[str]":
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "alignment", "run", *RUNS[name]]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=folder, env=environment(), **pipes)  # type: ignore[call-overload]

    return call


@pytest.fixture(scope="session")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an unbroken run, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            running = start(name, folder)
            _, said = running.communicate(timeout=300)
            assert running.returncode == 0, said
            made[name] = folder / "run"
        return made[name]

    return make


def wait_for_steps(folder: Path, count: int) -> None:
    """Until a run has saved `count` steps, or more."""
    end = time.monotonic() + 120
    while not any(int(p.name[5:]) >= count for p in (folder / "run/checkpoints").glob("step-????????")):
        assert time.monotonic() < end, "the run does not begin"
        time.sleep(0.01)


def assert_same(one: Path, other: Path) -> None:
    rows = [
        [
            {name: value for name, value in json.loads(line).items() if not name.startswith("time/")}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (one, other)
    ]
    assert rows[0] == rows[1] and rows[0]
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("moment", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 20))])
def test_killed_at_any_moment_it_ends_the_same(
    name: str, moment: int, start: Start, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    unbroken = whole(name)
    draw = random.Random(f"{name} {moment}")
    running = start(name, tmp_path)
    wait_for_steps(tmp_path, draw.randint(1, 8))
    time.sleep(draw.random() * 0.3)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not (tmp_path / "run" / "finished.json").exists()
    again = start(name, tmp_path)
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.parametrize("name", ["dpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_asked_to_stop_all_save_the_same_step_and_go_on(
    name: str, start: Start, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    unbroken = whole(name)
    running = start(name, tmp_path)
    wait_for_steps(tmp_path, 2)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=120)
    assert running.returncode == os.EX_TEMPFAIL, said
    (line,) = said.splitlines()
    assert line.startswith(f"alignment: {RUNS[name][0]}: stopped by a signal after step ")
    assert line.endswith(", which is saved; to go on: alignment run run/config.yaml")
    again = start(name, tmp_path)
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert_same(tmp_path / "run", unbroken)

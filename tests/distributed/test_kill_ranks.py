"""Runs of two processes that are killed at a random moment, or asked to stop: run again, they end as unbroken ones."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = [
    "dpo",
    "ppo",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("kto", "grpo", "online_dpo", "rloo", "simpo")),
]
HEARD = {
    signal.SIGINT: "alignment: heard SIGINT: finishing the step, then saving; Ctrl-C again stops at once",
    signal.SIGTERM: "alignment: heard SIGTERM: finishing the step, then saving",
}


def wait_for_steps(folder: Path, count: int) -> None:
    """Until a run has saved `count` steps, or more."""
    end = time.monotonic() + 120
    while not any(int(p.name[5:]) >= count for p in (folder / "run/checkpoints").glob("step-????????")):
        assert time.monotonic() < end, "the run does not begin"
        time.sleep(0.01)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("moment", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 20))])
def test_killed_at_any_moment_it_ends_the_same(
    name: str, moment: int, start: Any, whole: Any, assert_same: Any, tmp_path: Path
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


@pytest.mark.parametrize(
    ("name", "ask", "code"),
    [
        ("dpo", signal.SIGTERM, os.EX_TEMPFAIL),
        pytest.param("dpo", signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param("ppo", signal.SIGTERM, os.EX_TEMPFAIL, marks=pytest.mark.slow),
    ],
)
def test_asked_to_stop_all_save_the_same_step_and_go_on(
    name: str, ask: signal.Signals, code: int, start: Any, whole: Any, assert_same: Any, tmp_path: Path
) -> None:
    unbroken = whole(name)
    running = start(name, tmp_path)
    wait_for_steps(tmp_path, 2)
    running.send_signal(ask)
    _, said = running.communicate(timeout=120)
    assert running.returncode == code, said
    *told, line = said.splitlines()
    assert [each for each in told if each] == [HEARD[ask]]
    assert line.startswith(f"alignment: tiny_{name}: stopped by a signal after step ")
    assert line.endswith(", which is saved; to go on: alignment run run/config.yaml")
    again = start(name, tmp_path)
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert_same(tmp_path / "run", unbroken)

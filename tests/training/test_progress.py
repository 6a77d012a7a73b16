"""What a run shows of itself: lines in a file, a bar on a terminal of 80 columns."""

import io
import re

import pytest
from rich.console import Console

from alignment.terminal import duration
from alignment.training import progress
from alignment.training.progress import Bar, Lines, evaluation_lines, step_line

ROW = {"loss": 0.6123, "rewards/accuracy": 0.7187, "grad_norm": 3.0, "lr": 4.5e-6, "time/tokens_per_s": 12345.6}
EVAL = {"eval/loss": 0.61, "eval/rewards/accuracy": 0.72, "eval/logps/chosen": -9.0}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_says_step_numbers_rate_and_time_left() -> None:
    line = step_line(25, 500, ROW, 3723.4)
    assert line == "step 25 of 500  loss 0.612  rewards/accuracy 0.719  lr 4.5e-06  12,346 tokens/s  1:02:03 left"
    assert step_line(500, 500, {"loss": 1.0}, 0.0) == "step 500 of 500  loss 1"


def test_an_evaluation_is_one_short_line_for_each_held_out_set() -> None:
    assert evaluation_lines(50, {**ROW, **EVAL}) == ["eval at step 50: loss 0.61  rewards/accuracy 0.72"]
    sets = {"eval/harmless/loss": 0.5, "eval/helpful/loss": 0.25, "eval/helpful/rewards/accuracy": 1.0}
    assert evaluation_lines(3, sets) == [
        "eval of harmless at step 3: loss 0.5",
        "eval of helpful at step 3: loss 0.25  rewards/accuracy 1",
    ]
    assert evaluation_lines(3, ROW) == []
    assert evaluation_lines(3, {"eval/own": 2.0}) == ["eval at step 3: own 2"]  # of a method from outside


def test_a_fast_run_has_a_line_for_each_twentieth(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(1000, 0, Clock())
    lines.begin()
    for step in range(1, 1001):
        lines.show(step, ROW)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said] == [str(step) for step in range(50, 1001, 50)]


def test_a_slow_run_has_one_after_half_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines(100_000, 10, clock)  # goes on from step 10
    lines.begin()
    for step in range(11, 21):
        clock.now += 12.0
        lines.show(step, ROW)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said] == ["13", "16", "19"]
    assert said[0].endswith(f"{duration(12.0 * (100_000 - 13))} left")


def test_an_evaluation_has_its_step_s_line_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(1000, 0, Clock())
    lines.show(0, EVAL)  # before the first step: nothing was learned yet
    lines.show(7, {**ROW, **EVAL})
    said = capsys.readouterr().out.splitlines()
    assert [line[:14] for line in said] == ["eval at step 0", "step 7 of 1000", "eval at step 7"]


@pytest.mark.parametrize("num_steps", [9, 500, 1_000_000])
def test_the_bar_keeps_the_steps_at_80_columns(num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    screen = Console(file=file, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    monkeypatch.setattr(progress, "console", screen)
    monkeypatch.setattr("alignment.terminal.console", screen)
    bar = Bar(num_steps, 0)
    bar.begin()
    bar.show(num_steps - 1, {**ROW, **EVAL, "reward": -1.25, "gold": 0.5, "kl": 12.25})
    bar.end()
    text = file.getvalue()
    last = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", text.splitlines()[-2])
    assert f"{num_steps - 1} of {num_steps} " in last and "loss 0.612" in last and len(last.strip("\r")) <= 80
    assert f"eval at step {num_steps - 1}: loss 0.61" in text


def test_time_is_told_in_hours_and_days() -> None:
    assert [duration(seconds) for seconds in (-1.0, 59.6, 3600.0, 90_061.0)] == [
        "0:00:00",
        "0:01:00",
        "1:00:00",
        "1 d 1:01:01",
    ]

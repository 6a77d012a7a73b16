"""What a run shows of itself as it goes: a bar on a terminal, a line now and then in a file; evaluations in both."""

import time
from collections.abc import Callable
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from alignment.config.metrics import EVAL, SHORT, headlines, held_out
from alignment.terminal import console, duration, has_bars, say

SPEED = "time/tokens_per_s"
EVERY_S = 30.0  # seconds after which a line is due, however few steps were taken
LINES = 20  # in a whole run, however fast it is
SHOWN_OF_EVALUATION = 6
BAR, TIME, GAPS = 10, 8, 5  # columns of the terminal


class Shown(Protocol):
    """What shows the rows of a run. `row` is what is logged of `step`."""

    def begin(self) -> None: ...

    def show(self, step: int, row: dict[str, float]) -> None: ...

    def end(self) -> None: ...


def shown_rows(num_steps: int, done: int, *, bar: bool) -> Shown:
    return Bar(num_steps, done) if bar and has_bars() else Lines(num_steps, done)


class Bar:
    """Steps done of all, time left and the newest numbers; what is said meanwhile comes above it."""

    def __init__(self, num_steps: int, done: int) -> None:
        self.progress = Progress(
            MofNCompleteColumn(separator=" of ", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=BAR),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.description}", markup=False),
            console=console,
        )
        self.room = 2 * len(str(num_steps)) + len(" of ") + BAR + TIME + GAPS
        self.task = self.progress.add_task("", total=num_steps, completed=done)

    def begin(self) -> None:
        self.progress.start()

    def show(self, step: int, row: dict[str, float]) -> None:
        for line in evaluation_lines(step, row):
            say(line)
        words = [f"{name.split('/')[-1]} {row[name]:.3g}" for name in SHORT if name in row]
        words += [f"{row[SPEED]:,.0f} tokens/s"] if SPEED in row else []
        while len(words) > 1 and len("  ".join(words)) > console.width - self.room:
            words.pop()  # a column too wide would take the room of the steps
        self.progress.update(self.task, completed=step, description="  ".join(words))

    def end(self) -> None:
        self.progress.stop()


class Lines:
    """A line after each `1 / LINES` of the run, and after EVERY_S seconds where that takes longer; evaluations too."""

    def __init__(self, num_steps: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_steps, self.done, self.clock = num_steps, done, clock
        self.started = self.said_at = clock()
        self.said = done

    def begin(self) -> None:
        self.started = self.said_at = self.clock()

    def show(self, step: int, row: dict[str, float]) -> None:
        now = self.clock()
        found = evaluation_lines(step, row)
        if step > self.done and (found or self._is_due(step, now)):
            left = (now - self.started) / (step - self.done) * (self.num_steps - step)
            say(step_line(step, self.num_steps, row, left))
            self.said, self.said_at = step, now
        for line in found:
            say(line)

    def end(self) -> None:
        """Its last line is that of the last step."""

    def _is_due(self, step: int, now: float) -> bool:
        part = step * LINES // self.num_steps > self.said * LINES // self.num_steps
        return part or step == self.num_steps or now - self.said_at >= EVERY_S


def step_line(step: int, num_steps: int, row: dict[str, float], left: float) -> str:
    """left: seconds to the end of the run."""
    words = [f"step {step} of {num_steps}", *(f"{name} {row[name]:.3g}" for name in SHORT if name in row)]
    words += [f"lr {row['lr']:.2g}"] if "lr" in row else []
    words += [f"{row[SPEED]:,.0f} tokens/s"] if SPEED in row else []
    words += [f"{duration(left)} left"] if step < num_steps else []
    return "  ".join(words)


def evaluation_lines(step: int, row: dict[str, float]) -> list[str]:
    """One for each held-out set of an evaluation; none of a row without one."""
    sets: dict[str, list[str]] = {}
    names = [name for name in row if name.startswith(EVAL)]
    for name in headlines(names) or names:
        place, plain = held_out(name)
        sets.setdefault(place, []).append(f"{plain} {row[name]:.4g}")
    return [
        f"eval{f' of {place}' if place else ''} at step {step}: {'  '.join(words[:SHOWN_OF_EVALUATION])}"
        for place, words in sets.items()
    ]

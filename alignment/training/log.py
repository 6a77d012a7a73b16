"""The log of a run: `metrics.jsonl`, one JSON object a step, the trackers asked for, and the progress bar."""

import json
import math
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alignment.config.errors import UserError
from alignment.config.run import TrainingConfig
from alignment.distributed.collectives import is_main
from alignment.runs.folder import RunFolder
from alignment.runs.rows import whole_lines
from alignment.runs.written import whole_file
from alignment.terminal import console
from alignment.training.timer import StepTimer
from alignment.training.trackers import started_trackers

SPEED = "time/tokens_per_s"
SHOWN = ("loss", "rewards/accuracy", "reward", "gold", "kl")  # of a step's metrics, on the progress bar


class MetricsLog:
    """Writes a step's metrics everywhere they go. Used as a context manager around a run."""

    def __init__(self, folder: Path, config: TrainingConfig, timer: StepTimer, *, num_steps: int, done: int) -> None:
        """`done` steps are in the log already; rows after them are forgotten, for a resumed run writes them again."""
        self.path = RunFolder(folder).metrics
        self.trackers = started_trackers(folder, config) if is_main() else []
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        hidden = not (config.log.progress and is_main())
        self.progress = Progress(TextColumn(folder.name), *columns, console=console, disable=hidden)
        self.bar = self.progress.add_task("", total=num_steps, completed=done)
        self.timer = timer
        if is_main():
            keep_rows_until(self.path, done)

    def __enter__(self) -> "MetricsLog":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        for tracker in self.trackers:
            tracker.finish()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One row. `time/*` is what differs between two runs of one seed."""
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise UserError(f"step {step}: {broken[0]} is {metrics[broken[0]]}; the last checkpoint, if any, is kept")
        measured = self.timer.take()
        row = {"step": step, **metrics, **measured}
        if not is_main():
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for tracker in self.trackers:
            tracker.log({**metrics, **measured}, step=step)
        shown = "  ".join(f"{name.split('/')[-1]} {metrics[name]:.3g}" for name in SHOWN if name in metrics)
        if SPEED in measured:
            shown += f"  {measured[SPEED]:.3g} tokens/s"
        self.progress.update(self.bar, completed=step, description=shown)


def keep_rows_until(path: Path, step: int) -> None:
    """Drop what a log of one JSON object a line says of later steps: a resumed run writes it again."""
    if not path.exists():
        return
    with whole_file(path) as kept:  # a kill may have torn the last line, or come now
        kept.write_bytes(b"".join(line for line, row in whole_lines(path) if row["step"] <= step))

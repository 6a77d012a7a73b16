"""The log of a run: `metrics.jsonl`, one JSON object a step, the trackers asked for, and what is shown of it."""

import json
import math
from pathlib import Path
from types import TracebackType

from alignment.config.errors import UserError
from alignment.config.run import TrainingConfig
from alignment.distributed.collectives import is_main
from alignment.runs.disk import naming
from alignment.runs.folder import RunFolder
from alignment.runs.rows import whole_lines
from alignment.runs.written import whole_file
from alignment.training.progress import shown_rows
from alignment.training.timer import StepTimer
from alignment.training.trackers import started_trackers


class MetricsLog:
    """Writes a step's metrics everywhere they go. Used as a context manager around a run."""

    def __init__(self, folder: Path, config: TrainingConfig, timer: StepTimer, *, num_steps: int, done: int) -> None:
        """`done` steps are in the log already; rows after them are forgotten, for a resumed run writes them again."""
        files = RunFolder(folder)
        self.path = files.metrics
        self.trackers = started_trackers(folder, config) if is_main() else []
        self.shown = shown_rows(num_steps, done, bar=config.log.progress) if is_main() else None
        self.timer = timer
        if is_main():
            keep_rows_until(self.path, done)
            with whole_file(files.progress) as path:
                path.write_text(json.dumps({"num_steps": num_steps}) + "\n")

    def __enter__(self) -> "MetricsLog":
        if self.shown is not None:
            self.shown.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown is not None:
            self.shown.end()
        for tracker in self.trackers:
            tracker.finish()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One row. `time/*` is what differs between two runs of one seed."""
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise UserError(f"step {step}: {broken[0]} is {metrics[broken[0]]}; the last checkpoint, if any, is kept")
        measured = self.timer.take()
        row = {"step": step, **metrics, **measured}
        if self.shown is None:
            return
        if step == 0:  # the run begins, and may have begun here before, without a checkpoint to go on from
            self.path.unlink(missing_ok=True)
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for tracker in self.trackers:
            tracker.log({**metrics, **measured}, step=step)
        self.shown.show(step, {**metrics, **measured})


def keep_rows_until(path: Path, step: int) -> None:
    """Drop what a log of one JSON object a line says of later steps: a resumed run writes it again."""
    if not path.exists():
        return
    with whole_file(path) as kept:  # a kill may have torn the last line, or come now
        kept.write_bytes(b"".join(line for line, row in whole_lines(path) if row["step"] <= step))

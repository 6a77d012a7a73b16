"""The log of a run: `metrics.jsonl`, one JSON object a step, the trackers asked for, and the progress bar."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alignment.config.parts import ConfigError
from alignment.config.tasks import TrainingConfig
from alignment.distributed.world import is_main
from alignment.terminal import console

SHOWN = ("loss", "rewards/accuracy", "reward", "gold", "kl")  # of a step's metrics, on the progress bar


class MetricsLog:
    """Writes a step's metrics everywhere they go. Used as a context manager around a run."""

    def __init__(self, folder: Path, config: TrainingConfig, *, num_steps: int, done: int) -> None:
        """`done` steps are in the log already; rows after them are forgotten, for a resumed run writes them again."""
        self.path = folder / "metrics.jsonl"
        self.trackers = [_tracker(kind, folder) for kind in config.log.trackers] if is_main() else []
        for tracker in self.trackers:
            tracker.store_init_configuration(_flat(asdict(config)))
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        hidden = not (config.log.progress and is_main())
        self.progress = Progress(TextColumn(folder.name), *columns, console=console, disable=hidden)
        self.bar = self.progress.add_task("", total=num_steps, completed=done)
        self.last = time.perf_counter()
        self._keep_until(done)

    def __enter__(self) -> "MetricsLog":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        for tracker in self.trackers:
            tracker.finish()

    def _keep_until(self, step: int) -> None:
        if not is_main() or not self.path.exists():
            return
        rows = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= step]
        self.path.write_text("".join(f"{row}\n" for row in rows))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One row. `time/*` is what differs between two runs of one seed."""
        now = time.perf_counter()
        row = {"step": step, **metrics, "time/step_s": round(now - self.last, 4)}
        self.last = now
        if not is_main():
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for tracker in self.trackers:
            tracker.log(metrics, step=step)
        shown = "  ".join(f"{name.split('/')[-1]} {metrics[name]:.3g}" for name in SHOWN if name in metrics)
        self.progress.update(self.bar, completed=step, description=shown)


def _tracker(kind: str, folder: Path) -> GeneralTracker:
    """Raises:
    ConfigError: no tracker of that name, or its package is not installed.
    """
    if kind not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"log.trackers must be among {sorted(LOGGER_TYPE_TO_CLASS)}, got {kind!r}")
    tracker_class = LOGGER_TYPE_TO_CLASS[kind]
    try:
        if tracker_class.requires_logging_directory:
            tracker = tracker_class(folder.name, str(folder))
        else:
            tracker = tracker_class(folder.name)
        tracker.start()
    except ImportError as error:
        raise ConfigError(f"log.trackers: the package of {kind!r} is not installed ({error})") from error
    return tracker


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings with dotted keys, which is what trackers take."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, bool)) else str(value)
    return flat

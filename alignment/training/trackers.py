"""The trackers that a run's metrics go to beside `metrics.jsonl`, all through accelerate.tracking."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from alignment.config.log import Tracker
from alignment.config.run import TrainingConfig

PROJECT = "alignment"


def started_trackers(folder: Path, config: TrainingConfig) -> list[GeneralTracker]:
    """Those of `log.trackers`, each told the config; for the main process."""
    if not config.log.trackers:
        return []
    PartialState()  # accelerate's loggers want one, and not all of its trackers make it
    trackers = [_started(kind, folder, config.log.project or PROJECT) for kind in config.log.trackers]
    for tracker in trackers:
        tracker.store_init_configuration(_flat(asdict(config)))
    return trackers


def _started(kind: Tracker, folder: Path, project: str) -> GeneralTracker:
    tracker_class = LOGGER_TYPE_TO_CLASS[kind.value]
    place = [str(folder)] if tracker_class.requires_logging_directory else []
    name, more = _names(kind, project, folder)
    tracker = tracker_class(name, *place, **more)
    tracker.start()
    return tracker


def _names(kind: Tracker, project: str, folder: Path) -> tuple[str, dict[str, str]]:
    """How accelerate's class is told both: its first argument is the project of some services and the run of others."""
    run = folder.name
    match kind:
        case Tracker.wandb | Tracker.trackio:
            return project, {"name": run}
        case Tracker.swanlab:
            return project, {"experiment_name": run}
        case Tracker.mlflow:
            return project, {"run_name": run}
        case Tracker.comet_ml:  # which makes up names
            return project, {}
        case Tracker.clearml:
            return run, {"project_name": project}
        case Tracker.aim:
            return run, {"experiment": project}
        case Tracker.tensorboard:
            return run, {}
        case Tracker.dvclive:
            return run, {"dir": str(folder / "dvclive")}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings with dotted keys, which is what trackers take."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, bool)) else str(value)
    return flat

"""What a run writes of itself as it goes."""

from dataclasses import dataclass, field
from enum import Enum

from alignment.config.base import Config
from alignment.config.errors import require


class Tracker(str, Enum):
    """What accelerate.tracking can write to; each needs its own package."""

    aim = "aim"
    """Aim's files, in the run's folder."""
    clearml = "clearml"
    """A server of ClearML."""
    comet_ml = "comet_ml"
    """The service Comet."""
    dvclive = "dvclive"
    """DVCLive's files, in `dvclive/` of the run's folder."""
    mlflow = "mlflow"
    """A server or folder of MLflow."""
    swanlab = "swanlab"
    """The service SwanLab."""
    tensorboard = "tensorboard"
    """Files for TensorBoard, in the run's folder."""
    trackio = "trackio"
    """Trackio's database, on this machine."""
    wandb = "wandb"
    """The service Weights & Biases."""


@dataclass(slots=True)
class LogConfig(Config):
    every: int = 1
    """Steps between rows of metrics.jsonl; a row has the means of the steps since the one before."""
    trackers: list[Tracker] = field(default_factory=list)
    """Where else the metrics go, beside metrics.jsonl: [tensorboard, wandb]. Each needs its own package."""
    project: str | None = None
    """Where a tracker that has projects files the run, which is named by its folder. Null: alignment."""
    progress: bool = True
    """A bar on a terminal. False: a line now and then in its place, as where the output goes to a file."""
    samples: int = 0
    """Tasks that draw replies: how many prompts of each iteration and evaluation to write, with their replies, to
    samples.jsonl."""
    ranges_every: int = 0
    """Optimizer steps between two looks, by layer, at the share of gradients, as the loss scale has them, and of
    weights that underflow or overflow the dtype that products compute in: `ranges/LAYER/...`. 0: never."""

    def __post_init__(self) -> None:
        require(self.every > 0, "log.every must be > 0", self.every)
        require(self.samples >= 0, "log.samples must be >= 0", self.samples)
        require(self.ranges_every >= 0, "log.ranges_every must be >= 0", self.ranges_every)
        rule = f"log.trackers must be names, of {', '.join(Tracker.__members__)}"
        require(all(isinstance(each, Tracker) for each in self.trackers), rule, self.trackers)
        has_projects = any(kind not in (Tracker.tensorboard, Tracker.dvclive) for kind in self.trackers)
        rule = "log.project needs one of log.trackers that has projects"
        require(self.project is None or has_projects, rule, self.project)

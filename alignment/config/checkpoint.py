"""When a run is saved, and whether it goes on from there."""

from dataclasses import dataclass
from enum import Enum

from alignment.config.base import Config
from alignment.config.errors import require


class Resume(str, Enum):
    auto = "auto"
    never = "never"


@dataclass(slots=True)
class CheckpointConfig(Config):
    every: int = 0
    """Steps between checkpoints; 0: none but the finished model."""
    every_minutes: float = 0.0
    """Minutes between checkpoints, beside `every`; 0: the clock saves none."""
    keep: int = 2
    """How many of the newest checkpoints stay."""
    resume: Resume = Resume.auto
    """auto: a run in a folder with checkpoints goes on from the newest good one. never: it begins anew."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every must be >= 0", self.every)
        rule = "checkpoint.every_minutes must be finite and >= 0"
        require(0 <= self.every_minutes < float("inf"), rule, self.every_minutes)
        require(self.keep > 0, "checkpoint.keep must be > 0", self.keep)

"""When a run is saved, and whether it goes on from there."""

from dataclasses import dataclass
from enum import Enum

from alignment.config.base import Config
from alignment.config.errors import require


class Resume(str, Enum):
    auto = "auto"
    """From the newest good checkpoint in output_dir."""
    never = "never"
    """From the first step; what is in output_dir is written anew."""


MINUTES = 10.0


@dataclass(slots=True)
class CheckpointConfig(Config):
    every: int = 0
    """Steps between checkpoints, beside those by the clock and after the last step; 0: those alone."""
    every_minutes: float = MINUTES
    """Minutes between checkpoints; 0: the clock saves none. After a save of t seconds the clock waits for 49 t at
    least, so that its saves from the second on take no more than 2% of the time. Off with
    distributed.offload_optimizer=nvme."""
    save_last: bool = True
    """Save after the last step too, so that a finished run can be made longer. A model that is trained whole takes 12
    bytes a weight on disk (weights and AdamW's two moments in float32; other optimizers keep less), an adapter 12 bytes
    for each of its own."""
    keep: int = 2
    """How many checkpoints stay on disk, the newest ones."""
    background: bool | None = None
    """Whether training goes on while a checkpoint is written, from a copy that takes its size of the machine's memory
    until then. null: on a GPU, where the weights are in its own."""
    resume: Resume = Resume.auto
    """Where the same command begins when output_dir has checkpoints."""

    def is_in_background(self, device: str) -> bool:
        """Of a run on devices of that type."""
        return device != "cpu" if self.background is None else self.background

    def is_in_passes(self) -> bool:
        """Whether any is written but at a run's end."""
        return self.every > 0 or self.every_minutes > 0

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every must be >= 0", self.every)
        rule = "checkpoint.every_minutes must be finite and >= 0"
        require(0 <= self.every_minutes < float("inf"), rule, self.every_minutes)
        require(self.keep > 0, "checkpoint.keep must be > 0", self.keep)

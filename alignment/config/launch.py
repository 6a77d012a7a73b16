"""How a run is started."""

from dataclasses import dataclass

from alignment.config.base import Config
from alignment.config.errors import require


@dataclass(slots=True)
class LaunchConfig(Config):
    processes: int = 1
    """Processes that the command starts on this machine; above 1 distributed.zero must be set. torchrun works too."""

    def __post_init__(self) -> None:
        require(self.processes > 0, "launch.processes must be > 0", self.processes)

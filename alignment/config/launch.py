"""How a run is started."""

from dataclasses import dataclass

from alignment.config.base import Config
from alignment.config.errors import require


@dataclass(slots=True)
class LaunchConfig(Config):
    processes: int = 1
    """Processes that the command starts on this machine; above 1 distributed.zero must be set. torchrun works too."""
    vllm: int = 0
    """GPUs of a vLLM server that the run starts for itself and ends with itself: one server, its model shared among
    them by tensor parallelism. They are the machine's last, the processes have the first. On a CPU: 1. 0: none."""

    def __post_init__(self) -> None:
        require(self.processes > 0, "launch.processes must be > 0", self.processes)
        require(self.vllm >= 0, "launch.vllm must be >= 0", self.vllm)

"""The devices that a run is planned for: this machine's, or those that its user names."""

import re
from dataclasses import dataclass, replace
from typing import TypeVar

from alignment.config.cluster import ClusterConfig
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.errors import ConfigError
from alignment.config.fp8 import Fp8
from alignment.config.launch import LaunchConfig
from alignment.config.optimizer import require_pages
from alignment.config.run import RunConfig, TrainingConfig
from alignment.distributed import collectives
from alignment.distributed.device import PEAK_FLOPS, free_memory, memory_in_use, peak_flops
from alignment.distributed.precision import precision_of, require_fp8_device

GB = 1e9
WANTED = re.compile(r"(\d+)x(?:([A-Za-z0-9]+)-)?(\d+)GB")
CARDS = {  # FLOPs a second, dense bfloat16, as the data sheets have it
    **{name: PEAK_FLOPS[name.partition("-")[0]] for name in ("A100-40GB", "A100-80GB", "H100-80GB", "H200-141GB")},
    "A10-24GB": 125e12,
    "4090-24GB": 165e12,
}
FP8_CARDS = ("H100-80GB", "H200-141GB", "4090-24GB")  # of those, which multiply in 8 bits: at twice the rate
PER_MACHINE = 8  # of GPUs that are named

Run = TypeVar("Run", bound=RunConfig)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What each process of a run has to itself."""

    processes: int
    name: str
    """Of a device."""
    memory: int
    """Bytes that a process may have on its device."""
    is_gpu: bool
    flops: float | None
    """A second at best, of products in bfloat16; None: not known."""
    local: int
    """Processes on one machine."""
    is_here: bool = False
    """Whether the memory is what is free now on this machine."""

    def with_processes(self, processes: int) -> "Hardware":
        return replace(self, processes=processes, local=min(processes, PER_MACHINE))


def named(text: str) -> Hardware:
    """What `--for` names. A GB is 1e9 bytes, of which a card has a few more than its name says.

    Raises:
        ConfigError: it is no such name.
    """
    found, known = WANTED.fullmatch(text), ", ".join(sorted(CARDS))
    if found is None or int(found[1]) < 1 or int(found[3]) < 1:
        rule = "--for must be a number of GPUs and their memory, 8x80GB, which may be named as a card"
        raise ConfigError(f"{rule}, 8xA100-80GB ({known}), got {text!r}")
    count, card, size = int(found[1]), found[2], int(found[3])
    if card is not None and f"{card}-{size}GB" not in CARDS:
        raise ConfigError(f"--for must name a card of {known}, or its memory alone ({count}x{size}GB), got {text!r}")
    name = f"GPU of {size} GB" if card is None else f"{card}-{size}GB"
    return Hardware(count, name, int(size * GB), is_gpu=True, flops=CARDS.get(name), local=min(count, PER_MACHINE))


def this_machine(config: RunConfig) -> Hardware:
    """As it is now, for the processes that the config asks for.

    Raises:
        ConfigError: the run needs a GPU, and there is none.
    """
    device, processes = collectives.pick_device(config.distributed.device), config.processes()
    if isinstance(config, TrainingConfig):
        require_pages(config.train.optimizer, device.type)
    local = min(processes, max(config.launch.processes, config.cluster.num_tasks_per_node()))
    is_gpu = device.type == "cuda"
    free = free_memory(device) // (1 if is_gpu else local)
    name = "GPU here" if is_gpu else "process on this machine"
    return Hardware(processes, name, free, is_gpu, peak_flops(device), local, is_here=True)


def measured(config: RunConfig) -> int:
    """Bytes of this process: the most that it had on its GPU, or has beside a CPU."""
    return memory_in_use(collectives.pick_device(config.distributed.device))


def placed_on(config: Run, hardware: Hardware) -> Run:
    """The config for a run there, with nothing left to the machine that it is read on. Without a ZeRO stage it is one
    process whatever there is.

    Raises:
        ConfigError: its rows cannot be dealt out to so many processes.
    """
    distributed = config.distributed
    if hardware.is_here:
        return replace(config, distributed=replace(distributed, precision=precision_of(distributed)))
    chosen = Precision.bfloat16 if distributed.precision is Precision.auto else distributed.precision
    distributed = replace(distributed, device=Device.cuda, precision=chosen)
    processes = hardware.processes if distributed.zero is not None else 1
    return replace(config, distributed=distributed, launch=LaunchConfig(processes), cluster=ClusterConfig())


def require_fp8_there(how: Fp8, distributed: DistributedConfig, hardware: Hardware) -> None:
    """Raises:
    ConfigError: products in 8 bits are asked for on devices that have none. Of a card that is named by its memory alone
        nothing is known.
    """
    if hardware.is_here:
        require_fp8_device(how, distributed)
    elif how is not Fp8.none and hardware.name in CARDS and hardware.name not in FP8_CARDS:
        rule = f"model.fp8 must be none but for cards that multiply in 8 bits ({', '.join(FP8_CARDS)})"
        raise ConfigError(f"{rule}, got {how.value!r} for {hardware.name}")

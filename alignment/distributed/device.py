"""What is set for a device before a run, and what it has: the memory in use, and how fast it is at best."""

import os
import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL
from pathlib import Path

import numpy as np
import psutil
import torch

from alignment.config.errors import ConfigError

PEAK_FLOPS = {  # a second, dense bfloat16, as the data sheets have it; the first whose name is in the device's
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}

CGROUPS, GROUP_OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # torch reads either, when it first uses a GPU
VISIBLE = "CUDA_VISIBLE_DEVICES"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def tell_deepspeed(device: torch.device) -> None:
    """Which device it is for, before it is imported: transformers imports it too, and it would look and say so."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)


def keep_freed_memory(device: torch.device) -> None:
    """Have the C library keep what this process frees, to the most that it ever had, for what it asks for next.

    On a CPU a training step frees its activations and the next one wants as much again; handed back to the system in
    between, every page of them is made anew, which took 5 to 10% of a small model's step. Blocks of 32 MiB and more
    still come and go: glibc takes no higher limit. Beside a GPU, whose memory torch keeps, and with another C library
    nothing is changed.
    """
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)


def choose_kernels(device: torch.device, *, deterministic: bool) -> None:
    """Which of torch's kernels a run has; before anything is computed, for CUDA reads its own setting once.

    Args:
        deterministic: whether to have those that give the same bits at every run. What has none is then an error, but
            within `any_kernel`.
    """
    if deterministic != torch.are_deterministic_algorithms_enabled():  # else not even asked: it imports a compiler
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, several times as fast as IEEE's float32
        # cuDNN's attention plans each new shape on the host, for milliseconds, and the lengths of groups are ever new.
        torch.backends.cuda.enable_cudnn_sdp(False)
        if not any(name in os.environ for name in ALLOCATOR):  # lengths are ever new, and would leave memory in pieces
            os.environ[ALLOCATOR[0]] = "expandable_segments:True"


@contextmanager
def any_kernel() -> Iterator[None]:
    """Inside, deterministic kernels are not asked for: around what has none, and of which it is said why it may."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(0)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


@contextmanager
def own_draws(seed: int) -> Iterator[None]:
    """Inside, every generator begins anew from a seed; outside, it goes on as if nothing had been drawn or seeded."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def memory_in_use(device: torch.device) -> int:
    """Bytes of this process: the most that was allocated on its GPU since the last call, or resident beside a CPU."""
    if device.type == "cpu":
        return int(psutil.Process().memory_info().rss)
    most = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return most


def free_memory(device: torch.device) -> int:
    """Bytes that a process could have now, of its GPU, or of this machine's memory and of the limit of the container or
    the job that it is in."""
    if device.type != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *_left_of_limits(CGROUPS, GROUP_OF_PROCESS)])


def total_memory(device: torch.device) -> int:
    """Bytes that a process could have at the most: of its GPU, or of this machine and the limit of its container or
    job."""
    if device.type != "cpu":
        return torch.cuda.mem_get_info(device)[1]
    limits = (int(most) for most, _ in _limits(CGROUPS, GROUP_OF_PROCESS))
    return min([psutil.virtual_memory().total, *limits])


def _left_of_limits(cgroups: Path, group: Path) -> Iterator[int]:
    """What is left to this process's control group, and to each that this one is in; files that may be read again
    count as free. Of version 1 there is none."""
    for most, folder in _limits(cgroups, group):
        used, parts = folder / "memory.current", folder / "memory.stat"
        if used.exists():
            kept = dict(line.split() for line in parts.read_text().splitlines()) if parts.exists() else {}
            yield max(0, int(most) - int(used.read_text()) + int(kept.get("inactive_file", 0)))


def _limits(cgroups: Path, group: Path) -> Iterator[tuple[str, Path]]:
    """What the process's control group may have, and each that this one is in, with its folder; of those that have a
    limit."""
    if not group.exists():
        return
    lines = (line.partition("::") for line in group.read_text().splitlines())
    own = next((path for number, _, path in lines if number == "0"), "/").lstrip("/")
    for folder in (cgroups / own, *(cgroups / own).parents):
        limit = folder / "memory.max"
        if limit.exists() and (most := limit.read_text().strip()) != "max":
            yield most, folder


def gpus_apart(last: int, processes: int) -> list[str]:
    """The machine's last GPUs, for a program beside the processes of the run, which have one each from the first on; as
    CUDA_VISIBLE_DEVICES names them.

    Raises:
        ConfigError: there are not so many.
    """
    return shared_out(visible_gpus(os.environ.get(VISIBLE), torch.cuda.device_count()), last, processes)


def visible_gpus(named: str | None, count: int) -> list[str]:
    """`named`: what CUDA_VISIBLE_DEVICES says; None: nothing, and all of them are to be seen."""
    names = [str(number) for number in range(count)] if named is None else [each.strip() for each in named.split(",")]
    return names[:count]  # CUDA stops reading at a name that it does not know


def shared_out(gpus: list[str], last: int, processes: int) -> list[str]:
    """The last of them, where as many others as there are processes are left."""
    if len(gpus) < processes + last:
        rule = f"launch.vllm={last} beside {processes} of the run's processes needs {processes + last} GPUs here"
        raise ConfigError(f"{rule}, got {len(gpus)}")
    return gpus[-last:]


def peak_flops(device: torch.device) -> float | None:
    """None for a device that is not in the table."""
    if device.type == "cpu":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)

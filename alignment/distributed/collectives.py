"""The processes of a run: who am I, how do sums cross them, and what happens when one of them is gone."""

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import ConfigError
from alignment.distributed import sequence
from alignment.process import is_launched

Value = TypeVar("Value")

WORKER = b"pt_gloo"  # the names of gloo's threads begin so
LETTING_GO = 10.0  # seconds, after which the interpreter goes all the same
JOINING = timedelta(minutes=10)  # for the last process to have started, whatever a collective may take
LOST = ("timed out", "connection closed", "connection reset", "broken pipe", "connection refused")  # as gloo says it


class LostRankError(RuntimeError):
    """A collective did not finish: a process is gone, or does something else than the others."""


def num_launched() -> int:
    """How many processes a launcher (ours, torchrun) started this one among; 1 where none did."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def init(config: DistributedConfig) -> None:
    """Join the other processes, as RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT say: gloo between CPUs,
    nccl between GPUs. DeepSpeed wants a group of one process too. Called again, it does nothing.

    Raises:
        DistStoreError: a process had not started after ten minutes.
        ConfigError: there are several processes and the config asks for the engine of one.
    """
    if dist.is_initialized():
        return
    if config.zero is None:
        if num_launched() > 1:
            rule = "distributed.zero must be set for several processes (distributed=zero1, zero2 or zero3)"
            raise ConfigError(f"{rule}, got null for {num_launched()} of them")
        return
    atexit.unregister(let_go)  # once is enough
    atexit.register(let_go)
    device = pick_device(config.device)
    backend = "gloo" if device.type == "cpu" else "nccl"
    timeout = timedelta(minutes=config.timeout_minutes)
    if not is_launched():
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, own, number = next(dist.rendezvous("env://", timeout=JOINING))
    store.set(f"started {own}", "")
    store.wait([f"started {other}" for other in range(number)], JOINING)  # what begins late is not taken for hanging
    dist.init_process_group(backend, store=dist.PrefixStore("run", store), rank=own, world_size=number, timeout=timeout)
    sequence.join(config.sequence_parallel, group_device(), timeout)


def let_go() -> None:
    """Returns when no thread of a group is at work. One that has yet to let go of a tensor when the interpreter takes
    itself down aborts the process, with a line of C++ on stderr and exit code 134; `init` has this called before."""
    last, quiet = time.monotonic() + LETTING_GO, 0
    while quiet < 2 and time.monotonic() < last:
        time.sleep(0.01)  # others may run meanwhile, also those that wait for the interpreter's lock
        quiet = 0 if any(map(_is_at_work, Path("/proc/self/task").glob("*"))) else quiet + 1


def _is_at_work(thread: Path) -> bool:
    """Whether it is one of gloo's, and neither waits for anything nor is gone."""
    try:
        name, state = (thread / "stat").read_bytes().partition(b"(")[2].rsplit(b") ", 1)
    except OSError:
        return False
    return name.startswith(WORKER) and not state.startswith(b"S")


def leave() -> None:
    """End the group, so that no process waits for one that has finished."""
    if dist.is_initialized():
        sequence.leave()
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def group_device() -> torch.device:
    """Where a tensor must be for the group's collectives to take it: this process's GPU where they go between GPUs.

    The other device to know is the run's, `pick_device`: what is computed with is there. Each collective here moves
    what it is given from wherever that is to the group's device, and its result back.
    """
    devices = [pair.partition(":")[0] for pair in dist.get_backend_config().split(",")]
    return torch.device("cpu" if "cpu" in devices else devices[0])


def barrier() -> None:
    """Returns when every process has come here."""
    if size() > 1:
        dist.barrier()


@contextmanager
def one_of_machine_first() -> Iterator[None]:
    """Inside, what one process of each machine has done, such as fetching a file, the others there find done."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not is_first:
        barrier()
    yield
    if is_first:
        barrier()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of `value` over all processes, on each of them and where it was; itself where there is one process."""
    if size() == 1:
        return value
    total = value.to(group_device(), copy=True)
    dist.all_reduce(total)
    return total.to(value.device)


def gathered(value: Value) -> list[Value]:
    """What each process has, in the order of ranks, on all of them; a barrier.

    For small Python objects.
    """
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def any_over_ranks(*flags: bool) -> list[bool]:
    """For each flag, whether any process has it set."""
    if size() == 1:
        return list(flags)
    return (sum_over_ranks(torch.tensor(flags, dtype=torch.int32)) > 0).tolist()


def highest_over_ranks(number: int) -> int:
    """The highest number that a process brings."""
    if size() == 1:
        return number
    highest = torch.tensor(number, device=group_device())
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)


def from_main(value: Value) -> Value:
    """The main process's small object, on all of them."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def tensor_from_main(value: Tensor) -> Tensor:
    """The main process's tensor, on all of them and where each has its own, which is of the same shape."""
    if size() == 1:
        return value
    sent = value.to(group_device(), copy=True)
    dist.broadcast(sent, src=0)
    return sent.to(value.device)


@contextmanager
def naming_rank(step: int | None = None) -> Iterator[None]:
    """Inside, a collective that hangs (`distributed.timeout_minutes`) or loses a process is an error that says where.

    Raises:
        LostRankError: names this rank, and the step where there is one.
    """
    try:
        yield
    except LostRankError:  # named by what runs within
        raise
    except RuntimeError as error:
        if size() == 1 or not is_lost(error):
            raise
        where = f"rank {rank()} of {size()}" + ("" if step is None else f", step {step}")
        raise LostRankError(f"{where}: a collective did not finish ({str(error).splitlines()[0]})") from error


def is_lost(error: BaseException) -> bool:
    """Whether a collective has failed, most often because another process is gone."""
    is_said = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)
    return is_said or isinstance(error, (LostRankError, dist.DistBackendError))


def pick_device(device: Device) -> torch.device:
    """Raises:
    ConfigError: a GPU is asked for and there is none.
    """
    if device is Device.auto:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device is Device.cuda and not torch.cuda.is_available():
        raise ConfigError("distributed.device must be cpu or auto where torch sees no GPU, got 'cuda'")
    return torch.device(device.value)

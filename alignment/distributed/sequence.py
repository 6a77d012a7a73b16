"""Processes that share the tokens of a row: sequence parallelism (DeepSpeed Ulysses, Jacobs et al. arXiv:2309.14509).

`distributed.sequence_parallel` of them after one another, by rank, make a group. A group has one part of a step's rows,
as a single process has without it; what it measures is counted by its first process alone (`counts`). All of a group
make the same loss of the whole rows, each through its own tokens, so that the gradient is the sum of theirs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """Those that share rows with this process, itself among them."""

    rank: int
    """This process's, from 0."""
    size: int
    group: dist.ProcessGroup
    device: torch.device
    """Where the group's collectives take tensors."""

    def exchanged(self, parts: Tensor) -> Tensor:
        """[size, ...] -> [size, ...]: the k-th goes to the k-th process, and what comes from it takes its place; the
        gradient goes back the same way. All of the group call it, and go through its backward pass."""
        received: Tensor = _Exchanged.apply(parts, self)
        return received

    def summed(self, own: Tensor) -> Tensor:
        """The sum over the group, on each of it. The gradient of each is that of what it brings to its own sum, for all
        make the same loss of it."""
        total: Tensor = _Summed.apply(own, self)
        return total


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _exchange(parts, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _exchange(gradient, ctx.group), None


def _exchange(parts: Tensor, group: SequenceGroup) -> Tensor:
    sent = parts.to(group.device).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group.group)
    return received.to(parts.device)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, group: SequenceGroup) -> Tensor:
        total = own.to(group.device, copy=True)
        dist.all_reduce(total, group=group.group)
        return total.to(own.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


_joined: list[SequenceGroup] = []


def join(size: int, device: torch.device, timeout: timedelta) -> None:
    """Make the groups of so many processes, once the processes have joined; all of them call it. `device`: where their
    collectives are."""
    _joined.clear()
    if size == 1:
        return
    for first in range(0, dist.get_world_size(), size):
        ranks = range(first, first + size)
        group = dist.new_group(list(ranks), timeout=timeout)
        if dist.get_rank() in ranks:
            _joined.append(SequenceGroup(dist.get_rank() - first, size, group, device))


def leave() -> None:
    """The groups end with that of all processes."""
    _joined.clear()


def sequence_group() -> SequenceGroup | None:
    """None where each process has its own rows."""
    return _joined[0] if _joined else None


@contextmanager
def each_alone() -> Iterator[None]:
    """Inside, each process reads whole rows, as all of its group do."""
    joined = _joined.copy()
    _joined.clear()
    try:
        yield
    finally:
        _joined.extend(joined)


def counts() -> bool:
    """Whether this process is the one of its group that counts what they measure alike."""
    return not _joined or _joined[0].rank == 0


def rows_rank() -> int:
    """Which of the parts that a step's rows are dealt out in is this process's."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return rank // _joined[0].size if _joined else rank


def rows_size() -> int:
    """How many parts these are."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    return size // _joined[0].size if _joined else size

"""Forwards without gradients, of which every process of a run takes equally many."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, Self, TypeVar

import torch


class Movable(Protocol):
    """What a forward takes: a batch."""

    def to(self, device: torch.device) -> Self: ...


Unit = TypeVar("Unit", bound=Movable)
Result = TypeVar("Result")


@torch.no_grad()
def forwards(
    batches: Iterable[tuple[Unit, bool]],
    read: Callable[[Unit], Result],
    *,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]],
) -> Iterator[tuple[Unit, Result, bool]]:
    """Of each batch: itself on the `device`, what `read` takes from it in the run's precision, and whether it counts.

    batches: those of `EvenBatches`, also behind a progress bar. All processes gather sharded weights together in each
    forward, so that each must go on to the end, past those of its batches that count.
    """
    for unit, counts in batches:
        moved = unit.to(device)
        with precision():
            result = read(moved)
        yield moved, result, counts

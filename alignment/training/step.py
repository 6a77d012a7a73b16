"""The training step that serves every method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignment.data.batches import EvenBatches
from alignment.distributed.collectives import sum_over_ranks
from alignment.distributed.engine import Engine
from alignment.losses import Mean
from alignment.models.forwards import forwards
from alignment.training.metrics import Metrics
from alignment.training.nonfinite import NonFiniteStep, stop
from alignment.training.objectives import Objective, StepWide, Unit


@dataclass(frozen=True, slots=True)
class Term:
    """A second loss of a step: weight * mean over its own micro-batches. Its metrics are called `name`/..."""

    name: str
    objective: Objective[Any]
    micro_batches: Sequence[Any]
    weight: float


def train_step(
    engine: Engine,
    objective: Objective[Unit],
    micro_batches: Sequence[Unit],
    on_nonfinite: Callable[[NonFiniteStep], None] = stop,
    *,
    beside: Term | None = None,
) -> Metrics:
    """One optimizer step over micro-batches: the gradient of the mean over ALL of them, on all ranks.

    Each micro-batch's sum is divided by the global count, so neither the cut nor the sharding changes the gradient.
    Where the loss or the gradient's norm is not finite on any rank, all ranks leave the weights as they are and call
    `on_nonfinite`, which raises or has the step left out. `beside` adds its own weighted mean to the loss.

    Returns:
        the metrics as sums and counts of this rank, `loss` among them, and `grad_norm` (before clipping); none of a
        step that was left out.
    """
    engine.model.train()
    metrics, loss = _accumulate(engine, objective, micro_batches, weight=1.0)
    if beside is not None:
        more, other = _accumulate(engine, beside.objective, beside.micro_batches, weight=beside.weight)
        metrics = metrics | {f"{beside.name}/{name}": value for name, value in more.items()}
        loss = loss + beside.weight * other
    norm, is_taken = engine.step(update=loss.isfinite())
    if not is_taken:
        on_nonfinite(NonFiniteStep(type(objective).__name__, loss.item(), norm.item()))
        return Metrics()
    return metrics | Metrics(grad_norm=Mean(norm.detach(), torch.ones_like(norm, dtype=torch.long))).counted_by_main()


def _accumulate(
    engine: Engine, objective: Objective[Unit], micro_batches: Sequence[Unit], *, weight: float
) -> tuple[Metrics, Tensor]:
    """Add the gradient of weight * mean; returns the metrics of this rank and the mean over all ranks."""
    if isinstance(objective, StepWide):
        objective.prepare(engine, EvenBatches(micro_batches))
    local = torch.full((), sum(objective.count(batch) for batch in micro_batches), device=engine.device)
    count = sum_over_ranks(local)
    metrics = Metrics()
    for batch in micro_batches:
        with engine.precision():
            output = objective(engine.model, batch.to(engine.device))
        loss, routers = output.loss.total / count, engine.model.router_loss
        if isinstance(routers, Tensor):  # a mixture of experts: its mean over micro-batches, as the loss is
            loss = loss + routers * (output.loss.count / count)
            metrics = metrics + {"router_loss": Mean.of(routers.detach())}
        engine.backward(weight * loss)
        metrics = metrics + Metrics.of(output)
    return metrics, sum_over_ranks(metrics["loss"].total) / count


@torch.no_grad()
def evaluate_step(engine: Engine, objective: Objective[Unit], batches: EvenBatches[Unit]) -> Metrics:
    """The objective's metrics over batches, with nothing learned."""
    engine.model.eval()
    if isinstance(objective, StepWide):
        objective.prepare(engine, batches)
    metrics = Metrics()
    read = partial(objective, engine.model)
    for _, output, counts in forwards(batches, read, device=engine.device, precision=engine.precision):
        measured = Metrics.of(output)
        metrics = metrics + (measured if counts else measured.uncounted())
    return metrics

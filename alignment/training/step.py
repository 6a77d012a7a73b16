"""The training step that serves every method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignment.data.batches import EvenBatches
from alignment.distributed.collectives import is_main, sum_over_ranks
from alignment.distributed.engine import Engine
from alignment.losses import LossOutput, Mean
from alignment.training.nonfinite import NonFiniteStep, stop
from alignment.training.objectives import Objective, StepWide, Unit

Metrics = dict[str, Mean]


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
        metrics |= {f"{beside.name}/{name}": value for name, value in more.items()}
        loss = loss + beside.weight * other
    norm = engine.step(update=bool(loss.isfinite()))
    if not (loss.isfinite() and norm.isfinite()):
        on_nonfinite(NonFiniteStep(type(objective).__name__, loss.item(), norm.item()))
        return {}
    return metrics | only_main({"grad_norm": Mean(norm.detach(), torch.ones_like(norm, dtype=torch.long))})


def _accumulate(
    engine: Engine, objective: Objective[Unit], micro_batches: Sequence[Unit], *, weight: float
) -> tuple[Metrics, Tensor]:
    """Add the gradient of weight * mean; returns the metrics of this rank and the mean over all ranks."""
    if isinstance(objective, StepWide):
        objective.prepare(engine, EvenBatches(micro_batches))
    local = torch.tensor(sum(objective.count(batch) for batch in micro_batches), device=engine.device)
    count = sum_over_ranks(local)
    metrics: Metrics = {}
    for batch in micro_batches:
        with engine.precision():
            output = objective(engine.model, batch.to(engine.device))
        loss, routers = output.loss.total / count, engine.model.router_loss
        if isinstance(routers, Tensor):  # a mixture of experts: its mean over micro-batches, as the loss is
            loss = loss + routers * (output.loss.count / count)
            metrics = added_metrics(metrics, {"router_loss": Mean.of(routers.detach())})
        engine.backward(weight * loss)
        metrics = added(metrics, output)
    return metrics, sum_over_ranks(metrics["loss"].total) / count


@torch.no_grad()
def evaluate_step(engine: Engine, objective: Objective[Unit], batches: EvenBatches[Unit]) -> Metrics:
    """The objective's metrics over batches, with nothing learned."""
    engine.model.eval()
    if isinstance(objective, StepWide):
        objective.prepare(engine, batches)
    metrics: Metrics = {}
    for batch, counts in batches:
        with engine.precision():
            output = objective(engine.model, batch.to(engine.device))
        metrics = added(metrics, output if counts else uncounted(output))
    return metrics


def uncounted(output: LossOutput) -> LossOutput:
    """The same metrics, over nothing."""
    return LossOutput(empty(output.loss), {name: empty(metric) for name, metric in output.metrics.items()})


def empty(mean: Mean) -> Mean:
    return Mean(torch.zeros_like(mean.total), torch.zeros_like(mean.count))


def only_main(metrics: Metrics) -> Metrics:
    """What every process has measured alike, counted by the main one alone: so it weighs as much in a row that a run
    ends on another number of processes."""
    return metrics if is_main() else {name: empty(mean) for name, mean in metrics.items()}


def added(metrics: Metrics, output: LossOutput) -> Metrics:
    """Metrics so far plus one micro-batch's."""
    return added_metrics(metrics, {"loss": output.loss.detach(), **output.metrics})


def added_metrics(metrics: Metrics, more: Metrics) -> Metrics:
    return metrics | {name: metrics[name] + value if name in metrics else value for name, value in more.items()}


def to_floats(metrics: Metrics) -> dict[str, float]:
    """Means over all ranks, one number each. A metric that counted nothing is left out."""
    if not metrics:
        return {}
    names = sorted(metrics)
    devices = [metrics[name].total.device for name in names]
    device = next((device for device in devices if device.type != "cpu"), devices[0])  # some are counted on the CPU
    pairs = [torch.stack([metrics[n].total.double().to(device), metrics[n].count.double().to(device)]) for n in names]
    sums = torch.stack(pairs)
    totals = sum_over_ranks(sums).tolist()
    return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count > 0}


@dataclass(slots=True)
class Pending:
    """What was measured since the last row of the log; in a checkpoint, which may thus lie between two rows."""

    metrics: Metrics = field(default_factory=dict)

    def add(self, more: Metrics) -> None:
        self.metrics = added_metrics(self.metrics, more)

    def take(self) -> dict[str, float]:
        """The means of the row that ends here; the next one starts from nothing."""
        means, self.metrics = to_floats(self.metrics), {}
        return means

    def state(self) -> dict[str, Any]:
        return {name: [mean.total, mean.count] for name, mean in self.metrics.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.metrics = {name: Mean(total, count) for name, (total, count) in state.items()}

    def load_resharded(self, saved: Sequence[dict[str, Any]]) -> None:
        """The main process goes on with what all ranks had counted, the others from zero."""
        summed: Metrics = {}
        for state in saved:
            summed = added_metrics(summed, {name: Mean(total.clone(), n.clone()) for name, (total, n) in state.items()})
        self.metrics = only_main(summed)

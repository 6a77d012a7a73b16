"""The training step that serves every method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignment.data.batches import EvenBatches
from alignment.distributed import sequence
from alignment.distributed.collectives import sum_over_ranks
from alignment.distributed.engine import Engine
from alignment.losses import Mean
from alignment.models.forwards import forwards
from alignment.models.routers import RouterLoads, router_statistics
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


@dataclass(frozen=True, slots=True)
class Learner:
    """What a step is made of: who learns what from which micro-batches. `beside` adds its own weighted mean to the
    loss."""

    engine: Engine
    objective: Objective[Any]
    micro_batches: Sequence[Any]
    beside: Term | None = None


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
    `on_nonfinite`, which raises or has the step left out. In float16 that is an overflow, which is left out untold and
    halves the loss scale, as long as this can be halved. `beside` adds its own weighted mean to the loss.

    Returns:
        the metrics as sums and counts of this rank, `loss` among them, and `grad_norm` (before clipping); none of a
        step that was left out. Of either, in float16, `precision/loss_scale` and `precision/skipped`, and what the
        engine's `watch` has seen.
    """
    started = _Started(Learner(engine, objective, micro_batches, beside))
    is_taken = started.step()
    if not is_taken and not started.is_overflow:
        started.tell(on_nonfinite)
    return started.measured(is_taken=is_taken)


def train_together(
    first: Learner, second: Learner, on_nonfinite: Callable[[NonFiniteStep], None] = stop
) -> tuple[Metrics, Metrics]:
    """`train_step` of two models, of which both are taken or none; their gradients are in memory together."""
    one, other = _Started(first), _Started(second)
    culprit = one

    def agree(could: bool) -> bool:
        nonlocal culprit
        culprit = other if could else one
        return other.step(may=could)

    is_taken = one.step(agree)
    if not is_taken and not (one.is_overflow or other.is_overflow):
        culprit.tell(on_nonfinite)
    return one.measured(is_taken=is_taken), other.measured(is_taken=is_taken)


def taken_step(engine: Engine, objective: Objective[Unit], micro_batches: Sequence[Unit]) -> Metrics:
    """`train_step`, until it is taken: in float16 the first ones may overflow, which changes the loss scale alone."""
    while "loss" not in (metrics := train_step(engine, objective, micro_batches)):
        pass
    return metrics


class _Started:
    """A step whose gradient is there, and that is not taken yet."""

    def __init__(self, learner: Learner) -> None:
        engine, beside = learner.engine, learner.beside
        engine.model.train()
        _routed(engine)  # and let go: of forwards that were no step's
        self.learner = learner
        self.metrics, self.loss = _accumulate(engine, learner.objective, learner.micro_batches, ends=beside is None)
        if beside is not None:
            more, other = _accumulate(engine, beside.objective, beside.micro_batches, weight=beside.weight, ends=True)
            self.metrics = self.metrics | {f"{beside.name}/{name}": value for name, value in more.items()}
            self.loss = self.loss + beside.weight * other
        self.routed = _routed(engine)
        self.scale = None if engine.scaling is None else engine.scaling.scale
        self.is_overflow = engine.scaling is not None and engine.scaling.can_halve()  # if it is not taken
        self.norm = torch.full_like(self.loss, float("nan"))

    def step(self, agree: Callable[[bool], bool] | None = None, *, may: bool = True) -> bool:
        engine = self.learner.engine
        self.norm, is_taken = engine.step(update=self.loss.isfinite() & may, agree=agree)
        if is_taken:
            model: Any = engine.model  # or what DeepSpeed has put around it, which passes the call on
            model.changed()
            if engine.merging is not None:
                engine.merging.after()
        return is_taken

    def tell(self, on_nonfinite: Callable[[NonFiniteStep], None]) -> None:
        name = type(self.learner.objective).__name__
        on_nonfinite(NonFiniteStep(name, self.loss.item(), self.norm.item()))

    def measured(self, *, is_taken: bool) -> Metrics:
        norm, metrics = self.norm.detach(), self.metrics if is_taken else Metrics()
        own = {"grad_norm": Mean(norm, torch.ones_like(norm, dtype=torch.long))} | self.routed if is_taken else {}
        if self.scale is not None:
            told = {"precision/loss_scale": self.scale, "precision/skipped": float(not is_taken)}
            own |= {
                name: Mean(torch.tensor(value, dtype=torch.float64), torch.tensor(1)) for name, value in told.items()
            }
        watch = self.learner.engine.watch
        seen = {} if watch is None else watch.take()
        metrics = metrics | {name: Mean(*counted) for name, counted in seen.items()}
        return metrics | Metrics(own).counted_by_main()


def _routed(engine: Engine) -> dict[str, Mean]:
    """How evenly a mixture's routers have dealt out the tokens of all processes since it was asked last."""
    loads = engine.model.router_loads
    table = loads.take() if isinstance(loads, RouterLoads) else None
    if table is None:
        return {}
    return {name: Mean.of(value[None]) for name, value in router_statistics(sum_over_ranks(table)).items()}


def _accumulate(
    engine: Engine, objective: Objective[Unit], micro_batches: Sequence[Unit], *, ends: bool, weight: float = 1.0
) -> tuple[Metrics, Tensor]:
    """Add the gradient of weight * mean, with which the step's is whole where it `ends`; returns the metrics of this
    rank and the mean over all ranks.

    Of processes that share the tokens of their rows one counts: each has the whole loss, and its part of the gradient.
    """
    counts = sequence.counts()
    if isinstance(objective, StepWide):
        objective.prepare(engine, EvenBatches(micro_batches))
    local = torch.full((), sum(objective.count(batch) for batch in micro_batches), device=engine.device)
    count = sum_over_ranks(local * counts)
    metrics = Metrics()
    for number, batch in enumerate(micro_batches, start=1):
        is_last = ends and number == len(micro_batches)
        metrics = metrics + _learn(engine, objective, batch, count, weight, is_last=is_last)
    metrics = metrics if counts else metrics.uncounted()
    return metrics, sum_over_ranks(metrics["loss"].total) / count


def _learn(
    engine: Engine, objective: Objective[Unit], batch: Unit, count: Tensor, weight: float, *, is_last: bool
) -> Metrics:
    """Add the gradient of weight * sum / count, of one micro-batch.

    With it ends its graph, before the next one's begins: layers in 8 bits keep their inputs as long as there is one.
    """
    with engine.precision():
        output = objective(engine.model, batch.to(engine.device))
    metrics, loss, routers = Metrics.of(output), output.loss.total / count, engine.model.router_loss
    if isinstance(routers, Tensor):  # a mixture of experts: its mean over micro-batches, as the loss is
        loss = loss + routers * (output.loss.count / count)
        metrics = metrics + {"router_loss": Mean.of(routers.detach())}
    engine.backward(weight * loss, is_last=is_last)
    return metrics


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

"""The training step that serves every method."""

from collections.abc import Sequence

import torch

from alignment.distributed.engine import Engine
from alignment.distributed.world import sum_over_ranks
from alignment.losses import LossOutput, Mean
from alignment.training.objectives import Objective, Unit

Metrics = dict[str, Mean]


def train_step(engine: Engine, objective: Objective[Unit], micro_batches: Sequence[Unit]) -> Metrics:
    """One optimizer step over micro-batches: the gradient of the mean over ALL of them, on all ranks.

    Each micro-batch's sum is divided by the global count, so neither the cut nor the sharding changes the gradient.

    Returns:
        the metrics as sums and counts of this rank, `loss` among them, and `grad_norm` (before clipping).
    """
    engine.model.train()
    local = torch.tensor(sum(objective.count(batch) for batch in micro_batches), device=engine.device)
    count = sum_over_ranks(local)
    metrics: Metrics = {}
    for batch in micro_batches:
        with engine.precision():
            output = objective(engine.model, batch.to(engine.device))
        engine.backward(output.loss.total / count)
        metrics = added(metrics, output)
    norm = engine.step()
    metrics["grad_norm"] = Mean(norm.detach(), torch.ones_like(norm, dtype=torch.long))
    return metrics


@torch.no_grad()
def evaluate_step(
    engine: Engine, objective: Objective[Unit], micro_batches: Sequence[Unit], spare: Sequence[Unit] = ()
) -> Metrics:
    """The objective's metrics over micro-batches, with nothing learned.

    Args:
        spare: run behind them, for the sake of ranks that have more, and not counted.
    """
    engine.model.eval()
    metrics: Metrics = {}
    for index, batch in enumerate([*micro_batches, *spare]):
        with engine.precision():
            output = objective(engine.model, batch.to(engine.device))
        metrics = added(metrics, output if index < len(micro_batches) else uncounted(output))
    return metrics


def uncounted(output: LossOutput) -> LossOutput:
    """The same metrics, over nothing."""
    return LossOutput(empty(output.loss), {name: empty(metric) for name, metric in output.metrics.items()})


def empty(mean: Mean) -> Mean:
    return Mean(torch.zeros_like(mean.total), torch.zeros_like(mean.count))


def added(metrics: Metrics, output: LossOutput) -> Metrics:
    """Metrics so far plus one micro-batch's."""
    return added_metrics(metrics, {"loss": output.loss.detach(), **output.metrics})


def added_metrics(metrics: Metrics, more: Metrics) -> Metrics:
    return metrics | {name: metrics[name] + value if name in metrics else value for name, value in more.items()}


def to_floats(metrics: Metrics) -> dict[str, float]:
    """Means over all ranks, one number each. A metric that counted nothing is left out."""
    names = sorted(metrics)
    devices = [metrics[name].total.device for name in names]
    device = next((device for device in devices if device.type != "cpu"), devices[0])  # some are counted on the CPU
    pairs = [torch.stack([metrics[n].total.double().to(device), metrics[n].count.double().to(device)]) for n in names]
    sums = torch.stack(pairs)
    totals = sum_over_ranks(sums).tolist()
    return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count > 0}

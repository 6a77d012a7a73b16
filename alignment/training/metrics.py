"""What is measured of steps and evaluations, and what becomes a row of the log."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from alignment.config.metrics import ACCURACY, PAIRS
from alignment.distributed.collectives import is_main, sum_over_ranks
from alignment.losses import LossOutput, Mean

MOST_NLL = 700.0  # nats a token, whose exponential is still a float


class Metrics(dict[str, Mean]):
    """Means that are not divided yet, by name: the sums and counts of this process.

    `a + b` adds what both have, of two batches or two steps; `a | b` puts other ones beside, as dict does.
    """

    @classmethod
    def of(cls, output: LossOutput) -> "Metrics":
        """Those of a micro-batch, `loss` among them."""
        return cls({"loss": output.loss.detach(), **output.metrics})

    def __add__(self, more: Mapping[str, Mean]) -> "Metrics":
        return self | {name: self[name] + value if name in self else value for name, value in more.items()}

    def __or__(self, more: Mapping[str, Mean]) -> "Metrics":  # type: ignore[override]
        return Metrics({**self, **more})

    def uncounted(self) -> "Metrics":
        """The same names, over nothing."""
        return Metrics(
            {name: Mean(torch.zeros_like(mean.total), torch.zeros_like(mean.count)) for name, mean in self.items()}
        )

    def counted_by_main(self) -> "Metrics":
        """What every process has measured alike, counted by the main one alone: so it weighs as much in a row that a
        run ends on another number of processes."""
        return self if is_main() else self.uncounted()

    def counting_pairs(self) -> "Metrics":
        """With the number of pairs that an evaluation's accuracy is of, over all ranks: its interval needs it."""
        if ACCURACY not in self:
            return self
        number = self[ACCURACY].count.double()
        return self | Metrics({PAIRS: Mean(number, torch.full_like(number, float(is_main())))})

    def means(self) -> dict[str, float]:
        """Over all ranks, one number each; all processes ask together. What counted nothing is left out."""
        if not self:
            return {}
        names = sorted(self)
        devices = [self[name].total.device for name in names]
        device = next((device for device in devices if device.type != "cpu"), devices[0])  # some count on the CPU
        pairs = [torch.stack([self[n].total.double().to(device), self[n].count.double().to(device)]) for n in names]
        totals = sum_over_ranks(torch.stack(pairs)).tolist()
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count > 0}


def of_sets(
    found: Mapping[str, Metrics], finish: Callable[[str, dict[str, float]], dict[str, float]]
) -> dict[str, float]:
    """The means over the held-out rows of all sets together, and those of each set that has a name as NAME/metric; all
    processes ask, once.

    finish: makes of a set's name, "" of all together, and its means what the log has of them.
    """
    together = Metrics()
    for metrics in found.values():
        together = together + metrics
    named = {name: metrics for name, metrics in found.items() if name}
    places = {f"{name}/": metrics.counting_pairs() for name, metrics in named.items()}
    whole = together.counting_pairs()
    flat = {f"{place}{metric}": mean for place, metrics in places.items() for metric, mean in metrics.items()}
    means = (whole | flat).means()
    row = finish("", {metric: means[metric] for metric in whole if metric in means})
    for name, place in zip(named, places, strict=True):
        own = {metric: means[place + metric] for metric in places[place] if place + metric in means}
        row |= {f"{place}{metric}": mean for metric, mean in finish(name, own).items()}
    return row


def with_perplexity(means: dict[str, float]) -> dict[str, float]:
    """A row of means, with exp(-`logps/token`) where it has that, in which all tokens count alike; left out where no
    float holds it. It is made of a row's mean, for a mean of perplexities is no perplexity."""
    nll = -means.get("logps/token", -math.inf)
    return {**means, "perplexity": math.exp(nll)} if nll < MOST_NLL else means


@dataclass(slots=True)
class Pending:
    """What was measured since the last row of the log; in a checkpoint, which may thus lie between two rows."""

    metrics: Metrics = field(default_factory=Metrics)

    def add(self, more: Metrics) -> None:
        self.metrics = self.metrics + more

    def take(self) -> dict[str, float]:
        """The means of the row that ends here; the next one starts from nothing."""
        means, self.metrics = self.metrics.means(), Metrics()
        return means

    def state(self) -> dict[str, Any]:
        return {name: [mean.total, mean.count] for name, mean in self.metrics.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.metrics = Metrics({name: Mean(total, count) for name, (total, count) in state.items()})

    def load_resharded(self, saved: Sequence[dict[str, Any]]) -> None:
        """The main process goes on with what all ranks had counted, the others from zero."""
        summed = Metrics()
        for state in saved:
            summed = summed + {name: Mean(total.clone(), count.clone()) for name, (total, count) in state.items()}
        self.metrics = summed.counted_by_main()

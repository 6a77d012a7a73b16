"""What a loss returns: a `Mean` that adds up exactly over micro-batches and ranks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.losses.checks import at_least_float32, require_bool, require_shape


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean that is not divided yet. Totals and counts of any split add to those of the whole; means do not.

    total: scalar, the sum over the counted values. count: scalar, how many they are (pairs, tokens), or, where they
    count unequally, the sum of their weights, which total holds too.
    """

    total: Tensor
    count: Tensor

    @classmethod
    def of(cls, values: Tensor, mask: Tensor | None = None) -> "Mean":
        """Sum and number of `values` (any shape; bool counts as 0 and 1) where `mask` (same shape, bool) is True.

        Half precision is summed in float32, the count is int64. Raises ValueError for a mask of another shape or dtype.
        """
        values = at_least_float32(values)
        if mask is None:
            return cls(values.sum(), torch.full((), values.numel(), device=values.device))
        require_bool(mask)
        require_shape("mask", mask, "values", values)
        return cls(values.masked_fill(~mask, 0.0).sum(), mask.sum())

    def mean(self) -> Tensor:
        """total / count; an empty Mean is 0, still attached to the graph."""
        return self.total / torch.where(self.count > 0, self.count, 1)

    def detach(self) -> "Mean":
        """The same numbers without their graph."""
        return Mean(self.total.detach(), self.count.detach())

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)


@dataclass(slots=True)
class LossOutput:
    """The loss to differentiate, and its metrics by name. Metrics are detached here, whoever made them."""

    loss: Mean
    metrics: dict[str, Mean]

    def __post_init__(self) -> None:
        self.metrics = {name: metric.detach() for name, metric in self.metrics.items()}

"""How much of a model's gradients and weights is too small or too large for the dtype that products compute in."""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from alignment.distributed import collectives

Parts = list[tuple[nn.Parameter, Tensor]]
"""Weights, and of each what this process has to count: no number is in the parts of two processes."""
KINDS = ("grad", "weight")
AT_ONCE = 2**20  # numbers


class RangeWatch:
    """Counts, before every `every`-th step that is taken, the numbers of each layer that `dtype` does not hold as they
    are. Gradients are as backward left them, summed over processes: in float16 multiplied by the loss scale, for it is
    these that are rounded to zero; they are divided by it and clipped later.
    """

    def __init__(self, layers: Mapping[nn.Parameter, str], *, dtype: torch.dtype, every: int) -> None:
        """`layers`: of each weight the name of its layer."""
        self.names = list(dict.fromkeys(layers.values()))
        self.layers, self.every = layers, every
        self.least, self.largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max
        self._counts: Tensor | None = None

    def is_due(self, taken: int) -> bool:
        """Before the step that follows on so many taken ones: one that is left out is looked at, and so is the next."""
        return (taken + 1) % self.every == 0

    def look(self, gradients: Parts, weights: Parts) -> None:
        """Count on the device, which is not waited for."""
        self._counts = torch.stack([self._counted(gradients), self._counted(weights)])

    def take(self) -> dict[str, tuple[Tensor, Tensor]]:
        """`ranges/LAYER/KIND_underflow`, of the numbers that are not 0 the share below the smallest normal number, and
        `ranges/LAYER/KIND_overflow`, of all the share that is not finite or beyond the largest, as its sum and count
        in this process. Empty where nothing was looked at since."""
        counts, self._counts = self._counts, None
        if counts is None:
            return {}
        found = {}
        for kind, of_layers in zip(KINDS, counts, strict=True):
            for name, (small, nonzero, large, number) in zip(self.names, of_layers, strict=True):
                found[f"ranges/{name}/{kind}_underflow"] = (small, nonzero)
                found[f"ranges/{name}/{kind}_overflow"] = (large, number)
        return found

    def _counted(self, parts: Parts) -> Tensor:
        """[layers, 4]: below the smallest normal number, not 0, beyond the largest, all. What is packed is left out."""
        device = next(iter(self.layers)).device
        counts = {name: torch.zeros(4, dtype=torch.int64, device=device) for name in self.names}
        for weight, part in parts:
            if part.is_floating_point():
                counts[self.layers[weight]] += self.count(part)
        return torch.stack(list(counts.values()))

    @torch.no_grad()
    def count(self, part: Tensor) -> Tensor:
        """[4], int64: of a tensor of any shape, as `_counted` has them. A large one is read part by part, for what is
        made of it is as large as it is."""
        return torch.stack([self._count(own) for own in part.reshape(-1).split(AT_ONCE)]).sum(0)

    def _count(self, part: Tensor) -> Tensor:
        sizes = (part.float() if part.itemsize < 4 else part).abs()  # in halves the bounds themselves would be rounded
        is_not_zero, number = sizes != 0, torch.full((), part.numel(), device=part.device)
        small, large = (is_not_zero & (sizes < self.least)).sum(), (~(sizes <= self.largest)).sum()
        return torch.stack([small, is_not_zero.sum(), large, number])


def whole_parts(model: nn.Module, optimizer: Optimizer) -> tuple[Parts, Parts]:
    """The optimizer's gradients and the model's weights, where each process has all of them: the main one counts."""
    if not collectives.is_main():
        return [], []
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    return [(p, p.grad) for p in trained if p.grad is not None], [(p, p) for p in model.parameters()]


def zero_parts(stage: int, zero: Any, model: nn.Module) -> tuple[Parts, Parts]:
    """Gradients and weights as a ZeRO stage has them where its optimizer begins to step."""
    if stage == 3:
        shards = [(p, zero.get_local_fp32_grad_for_param(p)) for group in zero.fp16_groups for p in group]
        held = [(p, vars(p)["ds_tensor"]) for p in model.parameters()]
        return _own(shards), _own(held)
    gradients, weights = whole_parts(model, zero)
    if stage > 0:
        gradients = []
        for params, parts in zip(zero.params_in_partition, zero.averaged_gradients.values(), strict=True):
            gradients += zip(params, (part for part in parts if "_zero_padding" not in vars(part)), strict=True)
    return gradients, weights


def look_if_due(watch: RangeWatch | None, scheduler: LRScheduler, stage: int, zero: Any, model: nn.Module) -> None:
    """Of a ZeRO engine whose schedule says how many steps are taken."""
    if watch is not None and watch.is_due(scheduler.last_epoch):
        watch.look(*zero_parts(stage, zero, model))


def _own(shards: Iterable[tuple[Any, Tensor]]) -> Parts:
    """Without what fills up the last processes' shards."""
    rank, parts = collectives.rank(), []
    for weight, shard in shards:
        left = weight.ds_numel - rank * shard.numel()
        parts.append((weight, shard.detach().flatten()[: max(left, 0)]))
    return parts


def before_steps(optimizer: Any, look: Callable[[], None]) -> None:
    """`look` first whenever the optimizer steps: by then a step's gradients are summed under every stage, and nothing
    is made of them yet."""
    own = optimizer.step

    @wraps(own)
    def step(*arguments: Any, **settings: Any) -> Any:
        look()
        return own(*arguments, **settings)

    optimizer.step = step

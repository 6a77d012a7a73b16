"""LOMO (arXiv:2306.09782): each weight is updated while the backward pass runs, so that no gradient is kept."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.sgd import sgd

from alignment.config.distributed import DistributedConfig
from alignment.config.errors import UserError
from alignment.distributed.engine import TorchEngine
from alignment.distributed.ranges import RangeWatch

NAME = "train.optimizer=lomo"


class LomoEngine(TorchEngine):
    """One process, whose step is one backward pass: as soon as all of a weight's gradient is there, SGD's update of it
    is made, w - lr (g + decay w), and the gradient let go. What is left to `step` is the schedule.

    `optimizer`: SGD without momentum, whose groups have rates and decays. The update is torch's own, so that weights
    are what that optimizer would have made of them, to the bit.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        *,
        config: DistributedConfig,
        max_grad_norm: float,
        watch: RangeWatch | None = None,
    ) -> None:
        """As TorchEngine, but for what takes gradients: a norm to clip to, float16 and a watch on ranges."""
        assert max_grad_norm == math.inf, "a norm is known when all weights have changed"
        super().__init__(model, optimizer, scheduler, config=config, max_grad_norm=max_grad_norm, watch=watch)
        assert self.scaling is None and self.watch is None, "of gradients, of which none is kept"
        self._norms: dict[nn.Parameter, Tensor] = {}
        self._is_finite = True  # the loss
        groups = enumerate(self.optimizer.param_groups)
        self._group_of = {weight: number for number, group in groups for weight in group["params"]}
        for weight in self._group_of:
            weight.register_post_accumulate_grad_hook(self._update)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Nothing, of a loss that is not finite: its step is left out. A GPU is waited for.

        Raises:
            UserError: it is not all of a step. The weights are as they were.
        """
        if not is_last:
            rule = f"{NAME} takes each step in one pass, in which it updates weights"
            raise UserError(f"{rule}: batch.max_tokens must have room for all rows of this one")
        self._is_finite = bool(loss.isfinite())
        if self._is_finite:
            super().backward(loss, is_last=is_last)

    def step(self, *, update: Tensor | None = None, agree: Callable[[bool], bool] | None = None) -> tuple[Tensor, bool]:
        """As the engine's protocol says of the loss.

        Raises:
            UserError: a gradient was not finite, and the weights are no longer what they were.
        """
        assert agree is None, f"{NAME} cannot wait for another engine"
        found = [self._norms[weight] for weight in self._group_of if weight in self._norms]
        norm = torch.linalg.vector_norm(torch.stack(found)) if found else torch.zeros((), device=self.device)
        self._norms.clear()
        if not norm.isfinite():
            why = "has changed weights by then: go on from the last checkpoint, with a lower train.learning_rate"
            raise UserError(f"the norm of a gradient is {norm.item()}, and {NAME} {why}")
        is_taken = self._is_finite and (update is None or bool(update))
        if is_taken:
            self.optimizer.step()  # which finds no gradient, and counts for the schedule
            self.scheduler.step()
        return norm if self._is_finite else torch.full_like(norm, math.nan), is_taken

    @torch.no_grad()
    def _update(self, weight: nn.Parameter) -> None:
        """By a hook of the weight, whose gradient is whole."""
        assert weight not in self._norms, "a weight's gradient has come twice in one step"
        assert weight.grad is not None
        self._norms[weight] = torch.linalg.vector_norm(weight.grad)
        group = self.optimizer.param_groups[self._group_of[weight]]
        sgd(
            [weight],
            [weight.grad],
            [None],
            weight_decay=group["weight_decay"],
            momentum=0.0,
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        weight.grad = None

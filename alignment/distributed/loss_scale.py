"""Dynamic loss scaling, for gradients that float16 would round to zero (Micikevicius et al. 1710.03740, section 3.2).

The rule is that of torch.amp.GradScaler and of DeepSpeed's `fp16`: a step whose gradient overflows is left out and
halves the scale, so many steps in a row without one double it. Neither of the two serves here: two models that skip
together (PPO's actor and critic) each have to hear of the other's overflow, and where DeepSpeed computes under autocast
its own scaler clips gradients before it has unscaled them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from alignment.config.distributed import DistributedConfig, Precision
from alignment.distributed.precision import precision_of

INITIAL, WINDOW = 2.0**16, 2000  # torch.amp.GradScaler's own
LEAST = 1.0  # where the gradient is no number at this scale, it is no overflow that scaling could mend
MOST = torch.finfo(torch.float32).max


class LossScale:
    """What a loss is multiplied by before its backward pass, and its gradient divided by before it is used."""

    def __init__(self, initial: float, window: int) -> None:
        self.scale = self.began = initial
        self.window = window
        self.num_taken = 0  # in a row, since the scale has changed

    def unscale(self, weights: Iterable[Tensor]) -> None:
        """Divide the gradients of weights, where they are."""
        for weight in weights:
            if weight.grad is not None:
                weight.grad.div_(self.scale)

    def can_halve(self) -> bool:
        return self.scale > LEAST

    def update(self, *, is_taken: bool) -> None:
        """After each step: whether it was taken, or left out."""
        if not is_taken:
            self.scale, self.num_taken = max(LEAST, self.scale / 2), 0
            return
        self.num_taken += 1
        if self.num_taken >= self.window:  # beyond it where a run goes on with a shorter one
            self.scale, self.num_taken = min(self.scale * 2, MOST), 0

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "num_taken": self.num_taken, "began": self.began}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there, or from the own initial scale where the state began with another one."""
        if state.get("began", self.began) != self.began:  # older checkpoints lack it
            return
        self.scale, self.num_taken = state["scale"], state["num_taken"]


def loss_scale_of(config: DistributedConfig) -> LossScale | None:
    """Of an engine; None where it does not compute in float16."""
    if precision_of(config) is not Precision.float16:
        return None
    return LossScale(config.initial_loss_scale or INITIAL, config.loss_scale_window or WINDOW)


def state_of(scaling: LossScale | None) -> dict[str, Any]:
    """Its part of an engine's state."""
    return {} if scaling is None else {"loss_scale": scaling.state()}


def go_on(scaling: LossScale | None, state: dict[str, Any]) -> None:
    """From an engine's state; from its own initial scale after steps in another precision."""
    if scaling is not None and "loss_scale" in state:
        scaling.load_state(state["loss_scale"])

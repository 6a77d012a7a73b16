"""AdamW whose two states are held in bfloat16: torch's equations in float32, and rounding at random between steps."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from alignment.config.optimizer import AT_ONCE

STATES = ("exp_avg", "exp_avg_sq")
KEPT = -(2**16)  # the bits of a float32 that a bfloat16 has


class AdamWOfBF16(Optimizer):
    """AdamW (arXiv:1711.05101) of float32 weights. A step is of its states in float32, which are then rounded up or
    down at random, the likelier the nearer (Gupta et al. 1502.02551, section 3): so that what is less than half a
    bfloat16 is not lost on the average. To the nearest the mean of squares would stand still with a beta of 0.999.

    The random numbers follow from how many steps a weight has taken and from its place in the optimizer: whoever has
    the whole weights, as under ZeRO 0, has the same states, and a run that goes on rounds as one that was not
    interrupted. No generator that a run draws from moves.
    """

    def __init__(self, settings: Iterable[dict[str, Any]], *, betas: tuple[float, float], eps: float) -> None:
        super().__init__(settings, {"betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Of every weight that has a gradient."""
        for number, group in enumerate(self.param_groups):
            for index, p in enumerate(group["params"]):
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["step"] = 0
                        state.update({name: torch.zeros_like(p, dtype=torch.bfloat16) for name in STATES})
                    generator = torch.Generator(p.device).manual_seed(_seed(state["step"], number, index))
                    _update(p, state, group, generator)
                    state["step"] += 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch makes every state of its weight's dtype, which loses none of their bits."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.update({name: state[name].bfloat16() for name in STATES})


def rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 in any shape to bfloat16: each number to one of its two neighbours, as likely as it lies near it, so that
    its mean is itself; what a bfloat16 has stays as it is, and what lies beyond the largest goes to the largest.

    As torchao's `_fp32_to_bf16_sr` (torchao/optim/quant_utils.py), which has that become infinite: random bits are
    added to those that are cut off.
    """
    bits = values.view(torch.int32)
    noise = torch.randint(2**16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    found = noise.add_(bits).bitwise_and_(KEPT).view(torch.float32)
    found = torch.where(found.isfinite(), found, bits.bitwise_and(KEPT).view(torch.float32))
    return torch.where(values.isfinite(), found, values).bfloat16()


def _seed(*place: int) -> int:
    """Of 32 bits, all of which differ from one place to the next: a CPU's generator takes no more."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def _update(p: Tensor, state: dict[str, Any], group: dict[str, Any], generator: torch.Generator) -> None:
    (beta1, beta2), constants = group["betas"], {key: group[key] for key in ("lr", "weight_decay", "eps")}
    for weight, gradient, *kept in _parts(p, p.grad, *(state[name] for name in STATES)):
        mean, squares = (each.float() for each in kept)
        step = torch.full((), float(state["step"]), device=p.device)  # which it counts up
        adamw(
            [weight],
            [gradient],
            [mean],
            [squares],
            [],
            [step],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            maximize=False,
            **constants,
        )
        for narrow, wide in zip(kept, (mean, squares), strict=True):
            narrow.copy_(rounded(wide, generator))


def _parts(p: Tensor, *others: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
    """Views of a weight and of others of its shape, some rows at a time."""
    tensors = [torch.atleast_1d(each) for each in (p, *others) if each is not None]
    row = p.numel() // max(1, len(tensors[0]))
    yield from zip(*(each.split(max(1, AT_ONCE // max(1, row))) for each in tensors), strict=True)

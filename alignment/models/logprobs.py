"""From logits to the log-probs of tokens, with the softmax made a few rows at a time, forward and backward.

For the backward pass the logits stay as the head made them (bfloat16 under autocast), and it writes their gradient over
them: they are the only [T, V] tensor there is.

On a GPU plain heads have kernels instead, fused_head.py, and this is for the others.

torch's chunked `linear_cross_entropy` (2.13) and Liger's fused one (0.8) do as much for a plain head. Neither is used:
they give no entropy, make all logits twice even where they fit, and take the head's weight, which under ZeRO 3 and LoRA
is not to be had without its module.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

ROWS = 128  # whose softmax exists at the same time


def logprobs_of(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """[T] nats, float32 at least: log softmax(logits / temperature) [T, V] at `targets` [T].

    The backward pass takes the logits' memory for their gradient: who needs their values, reads them before. A second
    backward pass raises RuntimeError, and so does the node that made the logits if it has kept them for its own.
    """
    return _LogprobsOf.apply(logits, targets, temperature)


@torch.no_grad()
def entropy_of(logits: Tensor, temperature: float) -> Tensor:
    """[T] nats: the entropy of softmax(logits / temperature) [T, V]; it carries no gradient. A logit of minus infinity,
    by which a model rules a token out, adds nothing."""
    everywhere = (part.log_softmax(-1) for _, part in _pieces(logits, temperature))
    least = torch.finfo(torch.float32).min  # for 0 times infinity is no number
    return torch.cat([-(logprobs.exp() * logprobs.clamp_(min=least)).sum(-1) for logprobs in everywhere])


@torch.no_grad()
def is_likeliest(logits: Tensor, targets: Tensor) -> Tensor:
    """[T] bool: whether the largest of the logits [T, V] is that of `targets` [T]; of equal ones, one alone counts."""
    return logits.max(-1).indices == targets  # which the CPU has sooner than argmax, and a GPU as soon


class _LogprobsOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits, targets)
        ctx.temperature = temperature
        pieces = _pieces(logits, temperature)
        return torch.cat([-cross_entropy(part, targets[rows], reduction="none") for rows, part in pieces])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """d log p(target) / d logits = (onehot(target) - p) / temperature."""
        logits, targets = ctx.saved_tensors
        for rows, part in _pieces(logits, ctx.temperature):
            weights = gradient[rows, None] / ctx.temperature
            off = part.softmax(-1).scatter_add_(1, targets[rows, None], -torch.ones_like(weights))
            torch.mul(off, -weights, out=logits[rows])
        return logits, None, None


def _pieces(logits: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """The rows of each piece, and their logits / temperature in float32 (float64 where they are)."""
    for start in range(0, max(1, len(logits)), ROWS):  # one piece, of no rows, where there are none
        rows = slice(start, start + ROWS)
        part = logits[rows].to(torch.promote_types(logits.dtype, torch.float32))
        yield rows, part if temperature == 1.0 else part / temperature

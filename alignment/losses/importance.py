"""Replies that another program drew than the one that learns from them."""

import math

from torch import Tensor

from alignment.losses.checks import at_least_float32, require_shape
from alignment.losses.kl import MAX_LOG_RATIO


def truncated_importance(old_logprobs: Tensor, drawn_logprobs: Tensor, clip: float) -> Tensor:
    """w_t = min(pi_old(a_t) / mu(a_t), C)   (truncated importance sampling, Ionides 2008; of an inference engine mu and
    a trainer pi_old: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025)

    old_logprobs: the trainer's, drawn_logprobs: the engine's, one shape, per token, nats. clip: C. Returns that shape.
    Raises ValueError for another shape and unless clip > 0.
    """
    require_shape("drawn_logprobs", drawn_logprobs, "old_logprobs", old_logprobs)
    if not 0 < clip < math.inf:
        raise ValueError(f"clip must be > 0 and finite, got {clip}")
    log_ratio = at_least_float32(old_logprobs) - at_least_float32(drawn_logprobs)
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp().clamp(max=clip)

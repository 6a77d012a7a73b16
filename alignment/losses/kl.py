"""Estimators of the KL divergence from samples."""

import math
from enum import Enum

from torch import Tensor

from alignment.losses.checks import at_least_float32, member, require_shape

# A log-ratio above this is cut, so that exp() stays finite; past it the gradient is zero. The mean of the ratio under
# the distribution that draws the tokens is 1, so by Markov's inequality a token gets there with odds below e^-20.
MAX_LOG_RATIO = 20.0
MAX_KL_ERROR = 0.2  # of the adaptive controller, either way (Ziegler et al.)


class KLEstimator(str, Enum):
    """Which function of the log-ratio estimates the divergence; d = log pi_ref - log pi of the token drawn."""

    k1 = "k1"
    """-d: unbiased, of high variance, of either sign."""
    k2 = "k2"
    """d^2 / 2: biased, of low variance, never below 0."""
    k3 = "k3"
    """e^d - 1 - d: unbiased, of low variance, never below 0."""


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator | str) -> Tensor:
    """KL(pi || pi_ref) per token from tokens drawn from pi, as KLEstimator has the formulas (Schulman, "Approximating
    KL divergence", joschu.net/blog/kl-approx.html, where d = log r).

    logprobs, ref_logprobs: one shape, per token, nats. Returns that shape, nats. Raises ValueError for another shape
    and an unknown estimator.
    """
    require_shape("ref_logprobs", ref_logprobs, "logprobs", logprobs)
    d = at_least_float32(ref_logprobs) - at_least_float32(logprobs)
    match member(KLEstimator, "estimator", estimator):
        case KLEstimator.k1:
            return -d
        case KLEstimator.k2:
            return d.square() / 2
        case KLEstimator.k3:
            d = d.clamp(max=MAX_LOG_RATIO)
            return d.expm1() - d


def adaptive_kl_weight(weight: float, kl: float, *, target: float, count: int, horizon: int) -> float:
    """beta <- beta (1 + K e),  e = clip((KL - target) / target, -0.2, 0.2)   (Ziegler et al. 1909.08593, section 2.2)

    The paper's K is 0.1. As in its code and TRL's, K = count / horizon here, so that the pace does not depend on how
    many replies make an iteration: `horizon` replies at KL >= 1.2 target raise beta by about a fifth.

    weight: beta. kl: mean over replies of their KL, summed over tokens, nats. count: those replies, on all processes.
    Raises ValueError unless weight >= 0, target > 0, 0 <= count <= horizon (beyond it beta could change its sign) and
    kl is finite.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be >= 0 and finite, got {weight}")
    if not 0 < target < math.inf:
        raise ValueError(f"target must be > 0 and finite, got {target}")
    if not 0 <= count <= horizon:
        raise ValueError(f"count must be in [0, horizon = {horizon}], got {count}")
    if not math.isfinite(kl):
        raise ValueError(f"kl must be finite, got {kl}")
    error = min(max((kl - target) / target, -MAX_KL_ERROR), MAX_KL_ERROR)
    return weight * (1 + error * count / horizon)

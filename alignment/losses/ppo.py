"""Proximal policy optimisation: the actor's loss and the critic's."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.losses.checks import counted
from alignment.losses.kl import MAX_LOG_RATIO, KLEstimator, kl_estimate
from alignment.losses.types import LossOutput, Mean


@dataclass(slots=True)
class PolicyLoss:
    """L = -min(r A, clamp(r, 1 - clip, 1 + clip) A),  r = pi(a_t) / pi_old(a_t)   (Schulman et al. 1707.06347, eq. 7)

    Reduction: mean over counted tokens.
    """

    clip: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1:
            raise ValueError(f"clip must be in (0, 1), got {self.clip}")

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> LossOutput:
        """logprobs, old_logprobs (at the rollout): per token, nats; advantages; mask bool: all of one shape.

        Metrics: `policy/clip_fraction` (share of tokens whose gradient the clip took), `policy/approx_kl` (k3 of
        KL(pi_old || pi), nats), `policy/ratio` (mean r). Raises ValueError for wrong shapes and dtypes.
        """
        logprobs, old_logprobs, advantages = counted(
            mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages
        )
        ratio = (logprobs - old_logprobs).clamp(max=MAX_LOG_RATIO).exp()
        plain = ratio * advantages
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip) * advantages
        approx_kl = kl_estimate(old_logprobs.detach(), logprobs.detach(), KLEstimator.k3)
        metrics = {
            "policy/clip_fraction": Mean.of(clipped < plain, mask),
            "policy/approx_kl": Mean.of(approx_kl, mask),
            "policy/ratio": Mean.of(ratio, mask),
        }
        return LossOutput(Mean.of(-torch.minimum(plain, clipped), mask), metrics)


@dataclass(slots=True)
class ValueLoss:
    """L = 1/2 max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2)

    The critic of OpenAI's PPO (Huang et al. 2022, "The 37 Implementation Details of PPO", detail 9).
    clip: in units of reward, None = no clipping, L = 1/2 (V - R)^2. Reduction: mean over counted tokens.
    """

    clip: float | None = 0.2

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be > 0 and finite, or null for no clipping, got {self.clip}")

    def __call__(self, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor) -> LossOutput:
        """values, old_values (at the rollout), returns: per token, in units of reward; mask bool: all of one shape.

        Metrics: `value/mean`, `value/error` (mean (V - R)^2), `value/drift` (mean |V - V_old|), `value/clip_fraction`
        (share of tokens whose gradient the clip took; 0 without clipping). Raises ValueError for wrong shapes and
        dtypes.
        """
        values, old_values, returns = counted(mask, values=values, old_values=old_values, returns=returns)
        plain = (values - returns).square()
        worst = plain
        if self.clip is not None:
            clipped_values = values.clamp(old_values - self.clip, old_values + self.clip)
            worst = torch.maximum(plain, (clipped_values - returns).square())
        metrics = {
            "value/mean": Mean.of(values, mask),
            "value/error": Mean.of(plain, mask),
            "value/drift": Mean.of((values - old_values).abs(), mask),
            "value/clip_fraction": Mean.of(worst > plain, mask),
        }
        return LossOutput(Mean.of(0.5 * worst, mask), metrics)

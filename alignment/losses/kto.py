"""Kahneman-Tversky optimisation: replies that are good or bad each by itself, without a pair."""

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from alignment.losses.checks import member, pairwise, require_bool, require_shape
from alignment.losses.preference import mean_over_pairs
from alignment.losses.types import LossOutput, Mean


class KTOVariant(str, Enum):
    """What a reply's reward is compared with (see KTOLoss)."""

    kto = "kto"
    """With z, the mean log-ratio of the step's prompts with replies to other ones, which estimates the KL; 0 at least
    (Ethayarajh et al. 2402.01306, eq. 8)."""
    apo_zero_unpaired = "apo_zero_unpaired"
    """With 0 (D'Oosterlinck et al. 2408.06266, APO-zero, for single replies)."""


@dataclass(slots=True)
class KTOLoss:
    """l = desirable_weight (1 - sigma(beta (h - z)))  of a desirable reply,
       l = undesirable_weight (1 - sigma(beta (z - h)))  of an undesirable one,  h = log pi(y|x) - log pi_ref(y|x)

    (Ethayarajh et al. 2402.01306, eq. 8.) z >= 0 estimates KL(pi || pi_ref) from prompts with replies to other ones, a
    constant to the gradient. variant=apo_zero_unpaired has z = 0 (D'Oosterlinck et al. 2408.06266, for single replies).

    Reduction: mean over replies, weighted where they carry weights. beta: of the summed log-ratio, nats.
    """

    beta: float = 0.1
    """Factor on the log-ratio of policy and reference."""
    desirable_weight: float = 1.0
    """What a desirable reply counts; KTO's paper has weight * count of both kinds within 1 to 4/3 of each other."""
    undesirable_weight: float = 1.0
    """What an undesirable one counts."""
    variant: KTOVariant = KTOVariant.kto
    """What a reply's log-ratio is compared with."""

    def __post_init__(self) -> None:
        self.variant = member(KTOVariant, "variant", self.variant)
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be > 0 and finite, got {self.beta}")
        for name, weight in (("desirable", self.desirable_weight), ("undesirable", self.undesirable_weight)):
            if not 0 < weight < math.inf:
                raise ValueError(f"{name}_weight must be > 0 and finite, got {weight}")

    @property
    def has_baseline(self) -> bool:
        """Whether z is estimated, or 0."""
        return self.variant is KTOVariant.kto

    def __call__(
        self,
        logprobs: Tensor,
        ref_logprobs: Tensor,
        desirable: Tensor,
        baseline: Tensor,
        *,
        weight: Tensor | None = None,
    ) -> LossOutput:
        """logprobs, ref_logprobs: [B] summed log-probs of the replies, nats. desirable: [B] bool. baseline: scalar, the
        mean over a whole step of h of mismatched replies, nats; below 0 it counts as 0, as it does always for
        apo_zero_unpaired. weight: [B], > 0, what each reply counts in the mean; None: 1.

        Metrics: `rewards/chosen` and `rewards/rejected` (mean beta h of desirable and of undesirable replies), `kl`
        (z). Raises ValueError for wrong shapes and dtypes.
        """
        logprobs, ref_logprobs = pairwise(logprobs=logprobs, ref_logprobs=ref_logprobs)
        require_bool(desirable)
        require_shape("desirable", desirable, "logprobs", logprobs)
        if baseline.dim():
            raise ValueError(f"baseline must be a scalar, got {list(baseline.shape)}")
        z = baseline.detach().clamp(min=0.0) if self.has_baseline else torch.zeros_like(baseline)
        log_ratio = logprobs - ref_logprobs
        sign = torch.where(desirable, 1.0, -1.0)
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight)
        losses = weights * torch.sigmoid(-sign * self.beta * (log_ratio - z))  # 1 - sigma(x) = sigma(-x)
        rewards = self.beta * log_ratio
        metrics = {
            "rewards/chosen": Mean.of(rewards, desirable),
            "rewards/rejected": Mean.of(rewards, ~desirable),
            "kl": Mean.of(z.expand(len(losses))),
        }
        return LossOutput(mean_over_pairs(losses, weight), metrics)

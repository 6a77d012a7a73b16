"""Reward modelling from preference pairs, with the margin of Llama 2 or a weight by how much better a reply is."""

import math
from dataclasses import dataclass
from enum import Enum

import torch.nn.functional as F
from torch import Tensor

from alignment.losses.checks import member, pairwise
from alignment.losses.preference import mean_over_pairs, preference_metrics
from alignment.losses.types import LossOutput


class RankingVariant(str, Enum):
    """What the margin of a pair does in its loss."""

    margin = "margin"
    """The rewards are to differ by it: -log s(r_c - r_r - m), m = loss.margin_scale * the pair's margin, 0 where pairs
    carry none (Llama 2, 2307.09288, eq. 2; without m InstructGPT's, 2203.02155, eq. 1)."""
    scaled = "scaled"
    """It is the pair's weight: -m log s(r_c - r_r), scaled Bradley-Terry, for pairs with margins
    (HelpSteer2-Preference, 2410.01257)."""


@dataclass(slots=True)
class MarginRankingLoss:
    """L = f(r_c - r_r, m) + center (r_c + r_r)^2   (r_c chosen, r_r rejected, m the margin)

    f is under its name in RankingVariant. Only r_c - r_r is learnt from pairs; `center` ties the rewards' free constant
    to zero (Eisenstein et al. 2312.09244; TRL's center_rewards_coefficient). Reduction: mean over pairs, weighted where
    they carry weights.
    """

    margin_scale: float = 1.0
    """Factor on the pairs' margins, which data.margin brings."""
    center: float = 0.0
    """Weight of (r_c + r_r)^2, which holds the rewards' mean near 0."""
    variant: RankingVariant = RankingVariant.margin
    """What a pair's margin does; r_c and r_r are the rewards of the chosen and the rejected reply, s the logistic
    sigmoid."""

    def __post_init__(self) -> None:
        self.variant = member(RankingVariant, "loss.variant", self.variant)
        if not 0 <= self.margin_scale < math.inf:
            raise ValueError(f"loss.margin_scale must be >= 0 and finite, got {self.margin_scale}")
        if not 0 <= self.center < math.inf:
            raise ValueError(f"loss.center must be >= 0 and finite, got {self.center}")
        if self.variant is RankingVariant.scaled and self.margin_scale != 1:
            raise ValueError(f"loss.margin_scale must be 1 for loss.variant=scaled, got {self.margin_scale}")

    def __call__(
        self,
        chosen_rewards: Tensor,
        rejected_rewards: Tensor,
        margin: Tensor | None = None,
        *,
        weight: Tensor | None = None,
    ) -> LossOutput:
        """All [B]. *_rewards, margin: in units of reward (scaled: a factor of the loss). margin None: these pairs carry
        none, m = 0, and scaled raises. weight: > 0, what each pair counts in the mean; None: 1.

        Metrics, over pairs alike: `rewards/chosen`, `rewards/rejected`, `rewards/margin` (r_c - r_r),
        `rewards/accuracy`. Raises ValueError for wrong shapes and dtypes, and for a margin_scale other than 0 and 1
        with nothing to scale.
        """
        chosen, rejected = pairwise(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
        if margin is not None:
            _, margin = pairwise(chosen_rewards=chosen_rewards, margin=margin)
        losses = self._losses(chosen - rejected, margin)
        if self.center > 0:
            losses = losses + self.center * (chosen + rejected).square()
        return LossOutput(mean_over_pairs(losses, weight), preference_metrics(chosen, rejected))

    def _losses(self, difference: Tensor, margin: Tensor | None) -> Tensor:
        match self.variant:
            case RankingVariant.scaled:
                if margin is None:
                    raise ValueError("margin must be given for loss.variant=scaled, got None")
                return margin * -F.logsigmoid(difference)
            case RankingVariant.margin:
                if margin is not None:
                    return -F.logsigmoid(difference - self.margin_scale * margin)
                if self.margin_scale not in (0.0, 1.0):
                    rule = "loss.margin_scale must be 1 (or 0) for pairs without a margin"
                    raise ValueError(f"{rule}, got {self.margin_scale}")
                return -F.logsigmoid(difference)

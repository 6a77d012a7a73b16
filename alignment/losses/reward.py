"""Reward modelling from preference pairs, with the margin of Llama 2."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from alignment.losses.checks import pairwise
from alignment.losses.preference import preference_metrics
from alignment.losses.types import LossOutput, Mean


@dataclass(slots=True)
class MarginRankingLoss:
    """L = -log sigmoid(r_c - r_r - margin_scale m) + center (r_c + r_r)^2   (r_c chosen, r_r rejected)

    The margin m is Llama 2's (Touvron et al. 2307.09288, eq. 2); without it the first term is InstructGPT's loss
    (Ouyang et al. 2203.02155, eq. 1). Only r_c - r_r is learnt from pairs; `center` ties the rewards' free constant
    to zero (Eisenstein et al. 2312.09244; TRL's center_rewards_coefficient). Reduction: mean over pairs.
    """

    margin_scale: float = 1.0
    center: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.margin_scale < math.inf:
            raise ValueError(f"loss.margin_scale must be >= 0 and finite, got {self.margin_scale}")
        if not 0 <= self.center < math.inf:
            raise ValueError(f"loss.center must be >= 0 and finite, got {self.center}")

    def __call__(self, chosen_rewards: Tensor, rejected_rewards: Tensor, margin: Tensor | None = None) -> LossOutput:
        """chosen_rewards, rejected_rewards, margin: [B], in units of reward. None: these pairs carry no margin, m = 0.

        Metrics: `rewards/chosen`, `rewards/rejected`, `rewards/margin` (r_c - r_r), `rewards/accuracy`.
        Raises ValueError for wrong shapes and dtypes, and for a margin_scale other than 0 and 1 with nothing to scale.
        """
        chosen, rejected = pairwise(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
        logits = chosen - rejected
        if margin is not None:
            _, margin = pairwise(chosen_rewards=chosen_rewards, margin=margin)
            logits = logits - self.margin_scale * margin
        elif self.margin_scale not in (0.0, 1.0):
            raise ValueError(f"loss.margin_scale must be 1 (or 0) for pairs without a margin, got {self.margin_scale}")
        losses = -F.logsigmoid(logits)
        if self.center > 0:
            losses = losses + self.center * (chosen + rejected).square()
        return LossOutput(Mean.of(losses), preference_metrics(chosen, rejected))

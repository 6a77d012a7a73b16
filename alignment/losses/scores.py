"""Reward modelling without pairs: scores of single replies, and steps of replies that are right or wrong."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from alignment.losses.checks import pairwise, require_bool, require_shape
from alignment.losses.preference import mean_over_pairs
from alignment.losses.types import LossOutput, Mean


@dataclass(slots=True)
class ScoreRegressionLoss:
    """L = (r - s)^2   (r the reward of a reply, s the score that the data give it)

    The regression that HelpSteer2 trains reward models by (Wang et al. 2406.08673), of one score; a ranking loss that
    begins with it is HelpSteer2-Preference's best (2410.01257). Reduction: mean over replies, weighted where they carry
    weights.
    """

    def __call__(self, rewards: Tensor, scores: Tensor, *, weight: Tensor | None = None) -> LossOutput:
        """All [B]. scores: in units of reward. weight: > 0, what each reply counts in the mean; None: 1.

        Metrics, over replies alike: `rewards/mean`, `scores/mean`, `rewards/error` (the mean of |r - s|). Raises
        ValueError for wrong shapes and dtypes.
        """
        rewards, scores = pairwise(rewards=rewards, scores=scores)
        error = rewards - scores
        metrics = {
            "rewards/mean": Mean.of(rewards),
            "scores/mean": Mean.of(scores),
            "rewards/error": Mean.of(error.abs()),
        }
        return LossOutput(mean_over_pairs(error.square(), weight), metrics)


@dataclass(slots=True)
class ProcessRewardLoss:
    """L = -log sigmoid(r) of a step that is right, -log sigmoid(-r) of one that is wrong   (r the reward at its end)

    Process supervision (Uesato et al. 2211.14275; Lightman et al. 2305.20050) as the binary cross-entropy of each step
    (Math-Shepherd, Wang et al. 2312.08935, eq. 2). Reduction: mean over steps, weighted where their replies carry
    weights.
    """

    def __call__(self, rewards: Tensor, right: Tensor, *, weight: Tensor | None = None) -> LossOutput:
        """All [S]. rewards: logits. right: bool. weight: > 0, what each step counts in the mean; None: 1.

        Metrics, over steps alike: `rewards/right` and `rewards/wrong` (mean r of right and of wrong steps),
        `rewards/accuracy` (the share whose reward has the sign of its label). Raises ValueError for wrong shapes and
        dtypes.
        """
        (rewards,) = pairwise(rewards=rewards)
        require_bool(right)
        require_shape("right", right, "rewards", rewards)
        signed = rewards.where(right, -rewards)
        metrics = {
            "rewards/right": Mean.of(rewards, right),
            "rewards/wrong": Mean.of(rewards, ~right),
            "rewards/accuracy": Mean.of(signed > 0),
        }
        return LossOutput(mean_over_pairs(-F.logsigmoid(signed), weight), metrics)

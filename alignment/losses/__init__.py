"""Pure functions of tensors: the losses, and what PPO derives from scores. Useful in anybody's own trainer."""

from alignment.losses.advantages import (
    advantages_and_returns,
    discounted_returns,
    dr_grpo_advantages,
    grpo_advantages,
    moments,
    rloo_advantages,
    token_rewards,
    whiten,
)
from alignment.losses.cpo import CPOLoss, CPOVariant
from alignment.losses.dpo import DPOLoss, DPOVariant
from alignment.losses.importance import truncated_importance
from alignment.losses.kl import KLEstimator, adaptive_kl_weight, kl_estimate
from alignment.losses.kto import KTOLoss, KTOVariant
from alignment.losses.orpo import ORPOLoss, ORPONll, log1mexp
from alignment.losses.ppo import ImportanceRatio, Normalization, PolicyLoss, ValueLoss
from alignment.losses.preference import mean_over_pairs, preference_metrics
from alignment.losses.reward import MarginRankingLoss, RankingVariant
from alignment.losses.scores import ProcessRewardLoss, ScoreRegressionLoss
from alignment.losses.sft import CrossEntropyLoss
from alignment.losses.shaping import (
    choose_safety_or_helpfulness,
    clip_scores,
    normalize_scores,
    subtract_length_penalty,
    subtract_missing_eos_penalty,
)
from alignment.losses.simpo import SimPOLoss
from alignment.losses.types import LossOutput, Mean

__all__ = [
    "CPOLoss",
    "CPOVariant",
    "CrossEntropyLoss",
    "DPOLoss",
    "DPOVariant",
    "ImportanceRatio",
    "KLEstimator",
    "KTOLoss",
    "KTOVariant",
    "LossOutput",
    "MarginRankingLoss",
    "Mean",
    "Normalization",
    "ORPOLoss",
    "ORPONll",
    "PolicyLoss",
    "ProcessRewardLoss",
    "RankingVariant",
    "ScoreRegressionLoss",
    "SimPOLoss",
    "ValueLoss",
    "adaptive_kl_weight",
    "advantages_and_returns",
    "choose_safety_or_helpfulness",
    "clip_scores",
    "discounted_returns",
    "dr_grpo_advantages",
    "grpo_advantages",
    "kl_estimate",
    "log1mexp",
    "mean_over_pairs",
    "moments",
    "normalize_scores",
    "preference_metrics",
    "rloo_advantages",
    "subtract_length_penalty",
    "subtract_missing_eos_penalty",
    "token_rewards",
    "truncated_importance",
    "whiten",
]

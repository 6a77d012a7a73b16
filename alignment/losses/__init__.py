"""Pure functions of tensors: the losses, and what PPO derives from scores. Useful in anybody's own trainer."""

from alignment.losses.advantages import advantages_and_returns, token_rewards, whiten
from alignment.losses.dpo import DPOLoss, DPOVariant
from alignment.losses.kl import KLEstimator, kl_estimate
from alignment.losses.orpo import ORPOLoss, ORPONll, log1mexp
from alignment.losses.ppo import PolicyLoss, ValueLoss
from alignment.losses.preference import preference_metrics
from alignment.losses.reward import MarginRankingLoss
from alignment.losses.sft import CrossEntropyLoss
from alignment.losses.types import LossOutput, Mean

__all__ = [
    "CrossEntropyLoss",
    "DPOLoss",
    "DPOVariant",
    "KLEstimator",
    "LossOutput",
    "MarginRankingLoss",
    "Mean",
    "ORPOLoss",
    "ORPONll",
    "PolicyLoss",
    "ValueLoss",
    "advantages_and_returns",
    "kl_estimate",
    "log1mexp",
    "preference_metrics",
    "token_rewards",
    "whiten",
]

"""A process reward model: replies in steps, each of them right or wrong (Math-Shepherd)."""

from pathlib import Path

from alignment.config.supervised import RewardProcessConfig
from alignment.data.batches import Batches
from alignment.training.objectives import ProcessReward
from alignment.training.reward_model import train_reward_model
from alignment.training.supervised import Reference


def objective(config: RewardProcessConfig, batches: Batches, reference: Reference) -> ProcessReward:
    return ProcessReward(config.loss)


def run(config: RewardProcessConfig, folder: Path) -> str | None:
    return train_reward_model(config, folder, objective)

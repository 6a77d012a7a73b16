"""A process reward model: replies in steps, each of them right or wrong (Math-Shepherd)."""

from pathlib import Path

from alignment.config.enums import ExampleKind
from alignment.config.tasks import RewardProcessConfig
from alignment.training.objectives import ProcessReward
from alignment.training.reward_model import train_reward_model


def run(config: RewardProcessConfig, folder: Path) -> str | None:
    return train_reward_model(config, folder, ExampleKind.steps, ProcessReward(config.loss))

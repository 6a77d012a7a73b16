"""A reward model by regression on the scores of single replies (HelpSteer2), also to begin a ranking one with."""

from pathlib import Path

from alignment.config.enums import ExampleKind
from alignment.config.tasks import RewardRegressionConfig
from alignment.training.objectives import ScoreRegression
from alignment.training.reward_model import train_reward_model


def run(config: RewardRegressionConfig, folder: Path) -> str | None:
    return train_reward_model(config, folder, ExampleKind.scored, ScoreRegression(config.loss))

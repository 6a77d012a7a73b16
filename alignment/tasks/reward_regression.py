"""A reward model by regression on the scores of single replies (HelpSteer2), also to begin a ranking one with."""

from pathlib import Path

from alignment.config.supervised import RewardRegressionConfig
from alignment.data.batches import Batches
from alignment.training.objectives import ScoreRegression
from alignment.training.reward_model import train_reward_model
from alignment.training.supervised import Reference


def objective(config: RewardRegressionConfig, batches: Batches, reference: Reference) -> ScoreRegression:
    return ScoreRegression(config.loss)


def run(config: RewardRegressionConfig, folder: Path) -> str | None:
    return train_reward_model(config, folder, objective)

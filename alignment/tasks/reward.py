"""A reward model by ranking pairs, with Llama 2's margins or HelpSteer2-Preference's weights where they are graded."""

from pathlib import Path

from alignment.config.margin import MarginScale
from alignment.config.supervised import RewardConfig
from alignment.data.batches import Batches
from alignment.terminal import say
from alignment.training.objectives import RewardRanking
from alignment.training.reward_model import train_reward_model
from alignment.training.supervised import Reference


def objective(config: RewardConfig, batches: Batches, reference: Reference) -> RewardRanking:
    return RewardRanking(config.loss)


def run(config: RewardConfig, folder: Path) -> str | None:
    if config.data.margin.scale is MarginScale.none:
        say("data.margin.scale=none: the plain ranking loss, without margins")
    return train_reward_model(config, folder, objective)

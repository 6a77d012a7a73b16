"""The learning rate by the size of a step, for fine-tuning all weights of a large model: a rule of others."""

from dataclasses import replace
from math import sqrt
from typing import TypeVar

from alignment.config.run import TrainingConfig
from alignment.config.train import LearningRateRule
from alignment.data.batches import Batches
from alignment.data.tokenize import Example
from alignment.distributed.engine import counts
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.terminal import say

TOKENS = 4_000_000  # a step of LLaMA's, at whose rates
RATE, RATE_LARGE = 3e-4, 1.5e-4
LARGE = 30e9  # weights from which it is the second
LOWER = ("mistral", "gemma")  # families that take a sixth
SOURCE = "LLaMA-Factory's scripts/stat_utils/cal_lr.py, after OpenChat"
STEPS = 100  # whose rows are looked at, however many a run takes

Config = TypeVar("Config", bound=TrainingConfig)


def suggested_rate(tokens: float, num_weights: float, family: str) -> float:
    """r * sqrt(tokens / 4M), r = 3e-4, from 30B weights on 1.5e-4, and a sixth of it for Mistral and Gemma

    (OpenChat's ochat/training_deepspeed/train.py; LLaMA-Factory's scripts/stat_utils/cal_lr.py.)

    Args:
        tokens: that are learned from in a step, over all processes.
        family: the model_type of its config.
    """
    rate = RATE_LARGE if num_weights >= LARGE else RATE
    rate /= 6 if family.startswith(LOWER) else 1
    return rate * sqrt(tokens / TOKENS)


def with_rate(config: Config, model: LanguageModel | ScalarModel, batches: Batches) -> Config:
    """The config with the learning rate that its rule gives for the rows of a run's first steps, which is said; as it
    is where there is no rule."""
    train = config.train
    if train.learning_rate_rule is LearningRateRule.none:
        return config
    rows = [batches.examples[row] for step in range(STEPS) for row in batches.step_rows(step)]
    tokens = config.batch.size * sum(map(num_learned, rows)) / len(rows)
    rate = suggested_rate(tokens, counts(model)[1], str(model.hf.config.model_type))
    given = f"in place of train.learning_rate={train.learning_rate:g}"
    say(f"learning rate: {rate:.3g} by {SOURCE}, for {tokens:,.0f} learned tokens a step, {given}")
    return replace(config, train=replace(train, learning_rate=rate, learning_rate_rule=LearningRateRule.none))


def num_learned(example: Example) -> int:
    """Tokens that carry loss."""
    if example.learned is None:
        return sum(map(len, example.completion_ids))
    return sum(int(mask.sum()) for mask in example.learned)

"""A learning rate by the size of a step, for fine-tuning: a suggestion, of which a plan says where it is from."""

from collections.abc import Iterator
from math import sqrt

from alignment.config.optimizer import RATES
from alignment.config.supervised import SFTConfig
from alignment.models.footprint import config_and_trust
from alignment.plan.estimate import Plan
from alignment.plan.roles import widest_rows

TOKENS = 4_000_000  # a step of LLaMA's, at whose rates
RATE, RATE_LARGE = 3e-4, 1.5e-4
LARGE = 30e9  # weights from which it is the second
LEAST = 1e9  # weights from which the rule is shown: it is of models of 7B to 70B
LOWER = ("mistral", "gemma")  # families that take a sixth
SOURCE = "LLaMA-Factory's scripts/stat_utils/cal_lr.py, after OpenChat"


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


def rate_line(plan: Plan) -> Iterator[str]:
    """Of fine-tuning all weights of a large model by AdamW, or by what takes its rates. The rule is of nothing else:
    preferences take rates far below."""
    config, actor = plan.config, plan.roles[0]
    if not isinstance(config, SFTConfig) or config.model.lora.rank or config.train.optimizer in RATES:
        return
    if actor.counted.num_trained < LEAST:
        return
    length = widest_rows(config).completion
    family = str(config_and_trust(actor.role)[0].model_type)
    rate = suggested_rate(config.batch.size * length, actor.counted.num_trained, family)
    yield (
        f"learning rate: train.learning_rate={rate:.2g} by {SOURCE}, for {config.batch.size} rows of {length} learned "
        f"tokens; by the root of their number, so half of it for rows of a quarter (the recipe: "
        f"{config.train.learning_rate:g})"
    )

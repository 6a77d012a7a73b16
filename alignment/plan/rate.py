"""A learning rate by the size of a step, for fine-tuning: a suggestion, of which a plan says where it is from."""

from collections.abc import Iterator

from alignment.config.optimizer import RATES
from alignment.config.supervised import SFTConfig
from alignment.config.train import LearningRateRule
from alignment.models.footprint import config_and_trust
from alignment.plan.estimate import Plan
from alignment.plan.roles import widest_rows
from alignment.training.rate import SOURCE, suggested_rate

LEAST = 1e9  # weights from which the rule is shown: it is of models of 7B to 70B


def rate_line(plan: Plan) -> Iterator[str]:
    """Of fine-tuning all weights of a large model by AdamW, or by what takes its rates. The rule is of nothing else:
    preferences take rates far below."""
    config, actor = plan.config, plan.roles[0]
    if not isinstance(config, SFTConfig) or config.model.has_adapter or config.train.optimizer in RATES:
        return
    if actor.counted.num_trained < LEAST:
        return
    length = widest_rows(config).completion
    family = str(config_and_trust(actor.role)[0].model_type)
    rate = suggested_rate(config.batch.size * length, actor.counted.num_trained, family)
    is_chosen = config.train.learning_rate_rule is LearningRateRule.tokens
    own = "which the run takes, for its own rows" if is_chosen else f"the recipe: {config.train.learning_rate:g}"
    yield (
        f"learning rate: train.learning_rate={rate:.2g} by {SOURCE}, for {config.batch.size} rows of {length} learned "
        f"tokens; by the root of their number, so half of it for rows of a quarter ({own})"
    )

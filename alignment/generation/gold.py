"""The gold score: watched beside the learned reward and never learned from (the pair of Gao et al. 2210.10760)."""

from alignment.config.online import OnlineConfig
from alignment.generation.function import FunctionScorer, load_function
from alignment.generation.score import RewardModelScorer, reward_model_scorer


def build_gold(config: OnlineConfig) -> FunctionScorer | RewardModelScorer | None:
    """The scorer of `gold` (a function) or `gold_model` (a held-out reward model); None where neither is set.

    Raises:
        ConfigError: there is no such function or model.
    """
    if config.gold is not None:
        return FunctionScorer(load_function(config.gold, "gold"), "gold", config.gold)
    if config.gold_model is None:
        return None
    trusted = config.model.trust_remote_code
    return reward_model_scorer(config.gold_model, config.batch, config.distributed, key="gold_model", trusted=trusted)

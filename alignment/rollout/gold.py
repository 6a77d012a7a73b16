"""The gold score: watched beside the learned reward and never learned from (the pair of Gao et al. 2210.10760)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.parts import ConfigError, require
from alignment.config.tasks import PPOConfig
from alignment.distributed.world import from_main, is_main
from alignment.rollout.samples import Samples
from alignment.rollout.score import ScoreFunction, Scorer, load_function, reward_model_scorer


@dataclass(slots=True)
class GoldFunction:
    """A Python function of (prompts, replies)."""

    function: ScoreFunction

    def score(self, samples: Samples) -> Tensor:
        """[G, n] float32 on the CPU.

        Raises:
            ConfigError: the function gives another number of scores than it was given replies, or no finite ones.
        """
        texts = samples.texts()
        scores = from_main(self.function(samples.repeated_prompts(), texts) if is_main() else [])
        require(len(scores) == len(texts), f"gold must give {len(texts)} replies a score each", len(scores))
        broken = [score for score in scores if not math.isfinite(score)]
        require(not broken, "gold must give finite scores", broken[:1])
        return torch.tensor(scores, dtype=torch.float32).view(len(samples.prompts), -1)


def build_gold(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> Scorer | None:
    """The function `gold`, or the held-out reward model `gold_model`, or nobody.

    Raises:
        ConfigError: there is no such function, or the model's tokenizer is another than the policy's.
    """
    if config.gold is not None:
        return GoldFunction(load_function(config.gold, "gold"))
    if config.gold_model is None:
        return None
    try:
        return reward_model_scorer(config.gold_model, tokenizer, config.batch, config.distributed)
    except ConfigError as error:
        raise ConfigError(f"gold_model: {error}") from error

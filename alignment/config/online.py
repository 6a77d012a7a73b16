"""What every run has that trains on its own replies, and online DPO's config."""

from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from alignment.config.alarm import AlarmConfig
from alignment.config.generation import GenerationConfig
from alignment.config.parts import FUNCTION, INPUT, require
from alignment.config.ppo import RewardShapingConfig
from alignment.config.rules import require_generator, require_own_world, require_served
from alignment.config.run import TrainingConfig
from alignment.config.vocabulary import PairSelection
from alignment.losses import DPOLoss


@dataclass(slots=True)
class OnlineConfig(TrainingConfig):
    """Replies to prompts, scored; what is learned from them is the method's."""

    replies: ClassVar[bool] = True
    reward: RewardShapingConfig = MISSING
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    missing_eos_penalty: float = 0.0
    """Taken off the score of a reply that was cut before its end."""
    gold: str | None = field(default=None, metadata=FUNCTION)
    """Dotted path of a function that is logged beside the learned reward and never learned from."""
    gold_model: str | None = field(default=None, metadata=INPUT)
    """A reward model in its place, where there is no such function; of other data or another seed than the reward's."""
    alarm: AlarmConfig = field(default_factory=AlarmConfig)

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        require_generator(self.generation, self.distributed)
        require_served(self.generation, self.model)
        both = self.gold is not None and self.gold_model is not None
        require(not both, "at most one of gold and gold_model must be set", (self.gold, self.gold_model))
        require_own_world(self.data, {**self.reward.functions(), "gold": self.gold})
        require(self.missing_eos_penalty >= 0, "missing_eos_penalty must be >= 0", self.missing_eos_penalty)


@dataclass(slots=True)
class OnlineDPOConfig(OnlineConfig):
    loss: DPOLoss = field(default_factory=DPOLoss)
    num_samples: int = 2
    """Replies sampled for each prompt."""
    pairs: PairSelection = PairSelection.best_and_worst
    """Of a prompt's replies: the best against the worst, or each against all that score less."""

    def __post_init__(self) -> None:
        OnlineConfig.__post_init__(self)
        require(self.num_samples > 1, "num_samples must be > 1: a pair is of two replies", self.num_samples)
        rule = "pairs=all needs num_samples > 2, of two replies there is one pair"
        require(self.pairs is PairSelection.best_and_worst or self.num_samples > 2, rule, self.num_samples)

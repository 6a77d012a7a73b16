"""The parts of PPO's config: who scores, how the reward is shaped, how experience is learned from."""

from dataclasses import dataclass, field

from alignment.config.parts import INPUT, require
from alignment.losses import KLEstimator, PolicyLoss, ValueLoss


@dataclass(slots=True)
class ScorerConfig:
    """What scores a reply: a reward model, or a Python function of (prompts, replies)."""

    path: str | None = field(default=None, metadata=INPUT)
    function: str | None = None
    """Dotted path of a function (list of prompts as messages, list of replies as text) -> list of floats."""

    def __post_init__(self) -> None:
        rule = "exactly one of reward.path and reward.function must be set"
        require((self.path is None) != (self.function is None), rule, (self.path, self.function))


@dataclass(slots=True)
class CriticConfig:
    path: str | None = field(default=None, metadata=INPUT)
    """A model with a scalar head. Null: the reward model; where a function scores, the actor's body and a new head."""
    learning_rate: float = 1e-5

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "critic.learning_rate must be > 0", self.learning_rate)


@dataclass(slots=True)
class KLConfig:
    weight: float = 0.05
    """beta of the per-token penalty in the reward, r_t = -beta * KL_t."""
    estimator: KLEstimator = KLEstimator.k1

    def __post_init__(self) -> None:
        require(self.weight >= 0, "kl.weight must be >= 0", self.weight)


@dataclass(slots=True)
class AdvantageConfig:
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.gamma <= 1, "advantage.gamma must be in [0, 1]", self.gamma)
        require(0 <= self.lam <= 1, "advantage.lam must be in [0, 1]", self.lam)


@dataclass(slots=True)
class InnerConfig:
    """How often, and in how many pieces, one iteration's experience is learned from."""

    epochs: int = 4
    mini_batches: int = 1
    replies: int = 1
    """Replies sampled for each prompt."""

    def __post_init__(self) -> None:
        require(self.epochs > 0, "ppo.epochs must be > 0", self.epochs)
        require(self.mini_batches > 0, "ppo.mini_batches must be > 0", self.mini_batches)
        require(self.replies > 0, "ppo.replies must be > 0", self.replies)


@dataclass(slots=True)
class PPOLosses:
    policy: PolicyLoss = field(default_factory=PolicyLoss)
    value: ValueLoss = field(default_factory=ValueLoss)

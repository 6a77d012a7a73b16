"""Who scores a reply, and how the score becomes what is learned from."""

import math
from dataclasses import dataclass, field
from enum import Enum

from alignment.config.base import Config
from alignment.config.errors import ConfigError, require
from alignment.config.marks import FUNCTION, REWARD_MODEL

SAFETY_THRESHOLD = 0.15  # Llama 2's


class Combine(str, Enum):
    """How the scores of several models become one."""

    sum = "sum"
    """The sum of weight * score."""
    llama2 = "llama2"
    """The score of reward.models.safety where the prompt has the tag `safety` or the sigmoid of that score is below
    reward.safety_threshold, else that of reward.models.helpfulness; `models` has these two names and no other."""


@dataclass(slots=True)
class ScorerEntry(Config):
    """One of several scorers: a reward model, or a Python function of (prompts, replies)."""

    path: str | None = field(default=None, metadata=REWARD_MODEL)
    """A reward model's folder, its run's, or its name on the hub."""
    function: str | None = field(default=None, metadata=FUNCTION)
    """Dotted path of a function (prompts, replies) -> scores."""
    weight: float = 1.0
    """Factor on its scores where they are summed."""
    normalize: bool = False
    """(score - mean) / std, both as the reward model's training left them."""


@dataclass(slots=True)
class ScorerConfig(Config):
    """What scores a reply: a reward model, a Python function of (prompts, replies), or several of them."""

    path: str | None = field(default=None, metadata=REWARD_MODEL)
    """A reward model's folder, its run's, or its name on the hub; with roles.share=lora an adapter's folder, or that of
    the model or the run that has it."""
    function: str | None = field(default=None, metadata=FUNCTION)
    """Dotted path of a function (list of prompts as messages, list of replies as text) -> list of floats. Further
    parameters are columns of the data by their names: `def correct(prompts, replies, answer)`; `**columns`: all."""
    normalize: bool = False
    """(score - mean) / std, both as the reward model's training left them in its reward_statistics.json."""
    models: dict[str, ScorerEntry] = field(default_factory=dict)
    """name -> path or function, weight and normalize of one of several; needs path and function to be null:
    {helpfulness: {path: A}, brevity: {function: my_rewards.brevity, weight: 0.1}}."""
    combine: Combine = Combine.sum
    """How the scores of several `models` become one."""
    safety_threshold: float = SAFETY_THRESHOLD
    """combine=llama2: the safety model decides where its probability, the sigmoid of its score, is below this."""

    def __post_init__(self) -> None:
        _exactly_one(
            "exactly one of reward.path, reward.function and reward.models must be set",
            {"reward.path": self.path, "reward.function": self.function, "reward.models": list(self.models) or None},
        )
        rule = "reward.normalize needs reward.path: other scorers carry no statistics"
        require(not self.normalize or self.path is not None, rule, self.normalize)
        for name, model in self.models.items():
            _check_one(f"reward.models.{name}", model)
        if self.combine is Combine.llama2:
            self._check_llama2()
        else:
            rule = "reward.safety_threshold needs reward.combine=llama2"
            require(self.safety_threshold == SAFETY_THRESHOLD, rule, self.safety_threshold)

    def _check_llama2(self) -> None:
        rule = "reward.combine=llama2 needs reward.models named helpfulness and safety, and no other"
        require(set(self.models) == {"helpfulness", "safety"}, rule, sorted(self.models))
        for name, model in self.models.items():
            rule = f"reward.models.{name}.{{}} with reward.combine=llama2, which reads the model's own probability"
            require(model.weight == 1, rule.format("weight must be 1"), model.weight)
            require(not model.normalize, rule.format("normalize must be false"), model.normalize)
        rule = "reward.safety_threshold must be in [0, 1]"
        require(0 <= self.safety_threshold <= 1, rule, self.safety_threshold)

    def by_key(self) -> dict[str, ScorerEntry]:
        """Each scorer by the key its user knows it by: `reward`, or `reward.models.NAME`."""
        if self.models:
            return {f"reward.models.{name}": model for name, model in self.models.items()}
        return {"reward": ScorerEntry(self.path, self.function, normalize=self.normalize)}

    def functions(self) -> dict[str, str | None]:
        """key -> the dotted path of each function that scores."""
        return {f"{key}.function": scorer.function for key, scorer in self.by_key().items()}


def _exactly_one(rule: str, scorers: dict[str, str | list[str] | None]) -> None:
    """`scorers`: key -> its value, or the names in it; None where it is not set."""
    found = {key: value for key, value in scorers.items() if value is not None}
    if len(found) != 1:
        values = " and ".join(f"{key}={value!r}" for key, value in found.items())
        ways = " or ".join(f"{key}={{}}" if isinstance(value, list) else f"{key}=null" for key, value in found.items())
        raise ConfigError(f"{rule}, got {f'{values}; {ways} leaves one out' if found else 'none'}")


def _check_one(key: str, scorer: ScorerEntry) -> None:
    require(key.rpartition(".")[2].isidentifier(), "reward.models must have names without spaces and signs", key)
    rule = f"exactly one of {key}.path and {key}.function must be set"
    _exactly_one(rule, {f"{key}.path": scorer.path, f"{key}.function": scorer.function})
    require(math.isfinite(scorer.weight), f"{key}.weight must be finite", scorer.weight)
    rule = f"{key}.normalize needs {key}.path: a function carries no statistics"
    require(not scorer.normalize or scorer.path is not None, rule, scorer.normalize)


@dataclass(slots=True)
class RewardShapingConfig(ScorerConfig):
    """How scores become a reply's reward. In this order: normalize, combine, clip, whiten, missing-EOS penalty, length
    penalty."""

    clip: float | None = None
    """Scores are cut to [-clip, clip]."""
    whiten: bool = False
    """Unit variance over an iteration's replies, the mean kept; combine=llama2 does it by itself, with the mean off."""
    missing_eos_penalty: float = 0.0
    """Taken off the score of a reply that was cut before its end."""
    length_penalty: float = 0.0
    """Taken off for each token beyond the first `length_free`."""
    length_free: int = 0
    """Tokens of a reply that `length_penalty` takes nothing for."""

    def __post_init__(self) -> None:
        ScorerConfig.__post_init__(self)
        require(self.clip is None or self.clip > 0, "reward.clip must be > 0, or null for no clipping", self.clip)
        rule = "reward.whiten must be false with reward.combine=llama2, which whitens by itself"
        require(not (self.whiten and self.combine is Combine.llama2), rule, self.whiten)
        rule = "reward.missing_eos_penalty must be >= 0"
        require(0 <= self.missing_eos_penalty < math.inf, rule, self.missing_eos_penalty)
        require(0 <= self.length_penalty < math.inf, "reward.length_penalty must be >= 0", self.length_penalty)
        require(self.length_free >= 0, "reward.length_free must be >= 0", self.length_free)
        rule = "reward.length_free needs reward.length_penalty"
        require(self.length_free == 0 or self.length_penalty > 0, rule, self.length_free)

    @property
    def whitens(self) -> bool:
        return self.whiten or self.combine is Combine.llama2

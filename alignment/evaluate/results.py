"""What an evaluation found: the input of the report. Lists over prompts are in the order of `Evaluation.prompts`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class MethodResult:
    """One model's replies to the held-out prompts, one per prompt, and what they scored."""

    name: str
    gold: list[float] | None
    """The true score; None where there is no such function, as with real data."""
    reward: list[float] | None
    """The learned reward."""
    kl: list[float] | None
    """KL to the baseline model, nats per reply (summed over its tokens)."""
    lengths: list[int]
    """Tokens per reply."""
    replies: list[str]

    def per_prompt(self) -> dict[str, Sequence[float] | Sequence[str] | None]:
        """The fields with one entry per prompt, by name."""
        return {
            "gold": self.gold,
            "reward": self.reward,
            "kl": self.kl,
            "lengths": self.lengths,
            "replies": self.replies,
        }


@dataclass(slots=True)
class TrainingRun:
    """One finished training run."""

    name: str
    task: str
    metrics: list[dict[str, Any]]
    """Rows of metrics.jsonl: `step` and numbers by metric name."""
    config: str
    """The resolved configuration, as text."""


@dataclass(slots=True)
class RewardModelResult:
    """Scores of held-out preference pairs, and their annotated margins where the data have them."""

    chosen_scores: list[float]
    rejected_scores: list[float]
    margins: list[float] | None


@dataclass(slots=True)
class Evaluation:
    """All of it. Raises ValueError where the parts do not fit together."""

    prompts: list[str]
    methods: list[MethodResult]
    baseline: str
    """The name of the method that the others are compared with."""
    reward_model: RewardModelResult | None
    runs: list[TrainingRun]
    facts: dict[str, str]
    """Shown at the top: date, versions, seed, data."""

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if len(self.prompts) < 2:
            raise ValueError(f"an evaluation needs at least 2 prompts, got {len(self.prompts)}")
        if len(set(names)) < len(names):
            raise ValueError(f"method names must differ, got {names}")
        if self.baseline not in names:
            raise ValueError(f"baseline must be one of the methods {names}, got {self.baseline!r}")
        for method in self.methods:
            for field, values in method.per_prompt().items():
                if values is not None and len(values) != len(self.prompts):
                    raise ValueError(
                        f"method {method.name!r}: {field} must have one entry per prompt ({len(self.prompts)}), "
                        f"got {len(values)}"
                    )

    @property
    def baseline_result(self) -> MethodResult:
        return next(method for method in self.methods if method.name == self.baseline)

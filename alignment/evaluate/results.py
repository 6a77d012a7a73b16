"""What an evaluation found: the input of the report. Lists over prompts are in the order of `Evaluation.prompts`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    finished: list[bool] | None = None
    """Whether each reply came to its end, and was not cut."""
    completions: "CompletionsResult | None" = None
    """What it gives the completions of the data; None where they have none."""

    def per_prompt(self) -> dict[str, Sequence[float] | Sequence[str] | None]:
        """The fields with one entry per prompt, by name."""
        return {
            "gold": self.gold,
            "reward": self.reward,
            "kl": self.kl,
            "lengths": self.lengths,
            "replies": self.replies,
            "finished": self.finished,
        }


@dataclass(slots=True)
class CompletionsResult:
    """What one model gives the completions of held-out rows, in the order of the data."""

    nll: list[float]
    """Nats, summed over the tokens that it would learn of each, the end included."""
    tokens: list[int]
    """Of its own vocabulary."""
    num_bytes: list[int]
    """Of their text in UTF-8, the same to all models but for where their limits cut."""
    span_nll: list[list[float]]
    """`nll` by where in its row a token stands: in the spans of `alignment/evaluate/positions.py`."""
    span_tokens: list[list[int]]
    """`tokens` likewise."""


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
    lengths: list[tuple[int, int]] | None = None
    """Characters of each pair's chosen and rejected reply."""
    columns: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    """What the rows say of each pair, by column: a rating, a source, a subset, or several tags."""


@dataclass(slots=True)
class QuantizedResult:
    """A model, or itself in fewer bits, where these cost something. Lists over completions and over pairs are in the
    order of the data; None where there are none."""

    name: str
    """How it is held; `FULL` where it is as it was."""
    num_bytes: int
    """Of its weights."""
    error: tuple[float, float, float] | None
    """Of the linear layers' weights together: relative, mean squared, and the largest."""
    completions: CompletionsResult | None
    kl: list[float] | None
    """Nats from the full model, summed over each completion's tokens."""
    same: list[float] | None
    """Tokens of each completion where both have the same likeliest token."""
    preferences: list[tuple[float, float]] | None
    """What it gives the chosen and the rejected reply of each pair: log-probs, or a reward model's scores."""


@dataclass(slots=True)
class QuantizedResults:
    """A model beside its quantised selves."""

    model: str
    is_reward_model: bool
    selves: list[QuantizedResult]
    """The full model first."""


@dataclass(slots=True)
class Evaluation:
    """All of it. Raises ValueError where the parts do not fit together."""

    prompts: list[str]
    """Those that were replied to; [] where none was."""
    methods: list[MethodResult]
    """[] where a reward model was evaluated alone."""
    baseline: str
    """The name of the method that the others are compared with."""
    reward_model: RewardModelResult | None
    runs: list[TrainingRun]
    facts: dict[str, str]
    """Shown at the top: date, versions, seed, data."""
    quantized: QuantizedResults | None = None
    """The baseline, or the reward model where it is alone, beside itself in fewer bits."""

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if len(self.prompts) == 1 or not (self.prompts or self.reward_model or self._measured()):
            raise ValueError(f"an evaluation needs at least 2 prompts, got {len(self.prompts)}")
        if len(set(names)) < len(names):
            raise ValueError(f"method names must differ, got {names}")
        if names and self.baseline not in names:
            raise ValueError(f"baseline must be one of the methods {names}, got {self.baseline!r}")
        for method in self.methods:
            for name, values in method.per_prompt().items():
                if values is not None and len(values) != len(self.prompts):
                    raise ValueError(
                        f"method {method.name!r}: {name} must have one entry per prompt ({len(self.prompts)}), "
                        f"got {len(values)}"
                    )

    def _measured(self) -> bool:
        return any(method.completions is not None for method in self.methods)

    @property
    def baseline_result(self) -> MethodResult:
        return next(method for method in self.methods if method.name == self.baseline)

"""How many tokens a model has in one pass: of `batch.max_tokens` no more than the rows come to that it reads."""

from dataclasses import dataclass

from alignment.config.data import has_rows
from alignment.config.generation import Generation
from alignment.config.online import OnlineConfig, OnlineDPOConfig, PairSelection, PPOConfig
from alignment.config.run import TrainingConfig
from alignment.config.supervised import ReferencedConfig
from alignment.data.batches import evened
from alignment.plan.roles import Planned, PlannedRole


@dataclass(frozen=True, slots=True)
class PassTokens:
    """Of one model, with rows as long as their limits admit."""

    learned: int
    """The most of a pass that is learned from; 0 of a model that does not learn."""
    read: int
    """The most of a pass without gradients; of a model that learns, 0 where it reads none but what it learns from."""
    is_only: bool
    """Whether all that a process learns from in one step goes into one pass."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What all processes have of a step."""

    rows: int
    tokens: int
    """Of a row, which is not cut."""

    def largest(self, ranks: int, max_tokens: int) -> int | None:
        """Tokens of the largest pass, where each process has one; None where it has several."""
        most = max(1, max_tokens // self.tokens)  # rows of a pass
        if self.rows > ranks * most:
            return None
        pieces = evened([range(first, min(first + most, self.rows)) for first in range(0, self.rows, most)], ranks)
        return self.tokens * max(map(len, pieces)) if len(pieces) <= ranks else None


def pass_tokens(config: Planned, each: PlannedRole, processes: int, max_tokens: int) -> PassTokens:
    """Of passes of up to `max_tokens`, or of one row that is longer."""
    whole = max(max_tokens, each.counted.row)
    if not isinstance(config, TrainingConfig):
        return PassTokens(0, whole, is_only=False)
    ranks = max(1, processes // config.distributed.sequence_parallel)
    if not each.role.is_trained:
        return PassTokens(0, _read(config, each, ranks, max_tokens, whole), is_only=False)
    step = _learned(config, each)
    largest = step.largest(ranks, max_tokens)
    is_only = largest is not None and not _learns_texts(config, each)
    learned = max(max_tokens, step.tokens) if largest is None or not is_only else largest
    return PassTokens(learned, whole if _reads_others(config, each) else 0, is_only)


def _learned(config: TrainingConfig, each: PlannedRole) -> _Step:
    row = each.counted.row
    if isinstance(config, OnlineDPOConfig):  # whose rows are pairs
        replies = config.num_samples
        pairs = 1 if config.pairs is PairSelection.best_and_worst else replies * (replies - 1) // 2
        return _Step(config.batch.size * pairs, row)
    if isinstance(config, PPOConfig):
        return _Step(-(-config.batch.size // config.ppo.mini_batches), row)
    return _Step(config.batch.size, row)


def _learns_texts(config: TrainingConfig, each: PlannedRole) -> bool:
    """Whether its step has passes over PPO-ptx's texts too."""
    return isinstance(config, PPOConfig) and config.ptx.weight > 0 and not each.role.is_scalar


def _read(config: TrainingConfig, each: PlannedRole, ranks: int, max_tokens: int, whole: int) -> int:
    """By a model that does not learn."""
    if not isinstance(config, OnlineConfig):
        return whole  # of all rows that the run comes to, before it
    if not each.role.is_scalar:  # the reference, which reads what the policy learns from
        return _learned(config, each).largest(ranks, max_tokens) or whole
    if has_rows(config.data, "eval"):
        return whole  # replies to all held-out prompts
    return _Step(config.batch.size, each.counted.row).largest(ranks, max_tokens) or whole


def _reads_others(config: TrainingConfig, each: PlannedRole) -> bool:
    """Whether a model that learns reads rows of more than one step together."""
    if isinstance(config, OnlineConfig):  # OnlineDPO's looks at all replies that another program has drawn
        is_watched = config.generation.engine is Generation.vllm and isinstance(config, OnlineDPOConfig)
        return is_watched and not each.role.is_scalar
    is_reference = isinstance(config, ReferencedConfig) and config.reference.path is None
    return is_reference or has_rows(config.data, "eval")

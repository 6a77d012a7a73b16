"""How many tokens a model has in one pass: of `batch.max_tokens` no more than the rows come to that it reads."""

from dataclasses import dataclass

from alignment.config.data import has_rows
from alignment.config.generation import Generation
from alignment.config.online import OnlineConfig, OnlineDPOConfig, PairSelection, PPOConfig
from alignment.config.run import TrainingConfig
from alignment.config.supervised import ReferencedConfig
from alignment.data.batches import evened
from alignment.plan.roles import Planned, PlannedRole, texts_of_role, widest_rows
from alignment.tasks.rows import rows_of


@dataclass(frozen=True, slots=True)
class PassTokens:
    """Of one model, with rows as long as their limits admit."""

    learned: int
    """The most of a pass that is learned from; 0 of a model that does not learn."""
    read: int
    """The most of a pass without gradients; of a model that learns, 0 where it reads none but what it learns from."""
    is_only: bool
    """Whether all that a process learns from in one step goes into one pass."""
    texts: int = 0
    """The most of a pass of PPO-ptx's texts, of which a step has passes of their own."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What all processes have of a step."""

    rows: int
    tokens: int
    """Of the longest row, which is not cut."""

    def is_one_pass(self, ranks: int, max_tokens: int) -> bool:
        """Of each process: shorter rows come to no more passes."""
        most = self._at_once(max_tokens)
        pieces = [range(first, min(first + most, self.rows)) for first in range(0, min(self.rows, most * ranks), most)]
        return self.rows <= most * ranks and len(evened(pieces, ranks)) <= ranks

    def largest(self, ranks: int, max_tokens: int) -> int:
        """Tokens of its largest pass, at the most. Where one has room for all rows, they are halved by their number
        until each process has some; else shorter rows may be dealt out less evenly than the longest are."""
        if not self.is_one_pass(ranks, max_tokens):
            return max(max_tokens, self.tokens)
        if self.rows <= self._at_once(max_tokens):
            return self.tokens * max(map(len, evened([range(self.rows)], ranks)))
        return min(max(max_tokens, self.tokens), self.tokens * max(1, self.rows - ranks + 1))

    def _at_once(self, max_tokens: int) -> int:
        """Rows of a pass."""
        return max(1, max_tokens // self.tokens)


def pass_tokens(config: Planned, each: PlannedRole, processes: int, max_tokens: int) -> PassTokens:
    """Of passes of up to `max_tokens`, or of one row that is longer."""
    whole = max(max_tokens, each.counted.row)
    ranks = max(1, processes // config.distributed.sequence_parallel)
    if not isinstance(config, TrainingConfig):
        return PassTokens(0, whole, is_only=False)
    if not each.role.is_trained:
        # A judge lays replies out anew, and what reads rows before the run reads all of them.
        is_bounded = isinstance(config, OnlineConfig) and not each.role.is_scalar
        return PassTokens(0, _learned(config, each).largest(ranks, max_tokens) if is_bounded else whole, is_only=False)
    step, read = _learned(config, each), _read(config, each, max_tokens, whole)
    if isinstance(config, PPOConfig) and (rows := texts_of_role(config, each.role)) is not None:
        texts = _Step(config.ptx.size, rows.together).largest(ranks, max_tokens)
        return PassTokens(step.largest(ranks, max_tokens), read, is_only=False, texts=texts)
    return PassTokens(step.largest(ranks, max_tokens), read, is_only=step.is_one_pass(ranks, max_tokens))


def _learned(config: TrainingConfig, each: PlannedRole) -> _Step:
    row = each.counted.row
    if isinstance(config, OnlineDPOConfig):  # whose rows are pairs
        number = config.num_samples
        pairs = 1 if config.pairs is PairSelection.best_and_worst else number * (number - 1) // 2
        return _Step(config.batch.size * pairs, row)
    if isinstance(config, PPOConfig):
        replies = rows_of(config)[0]
        return _Step(-(-config.batch.size // config.ppo.mini_batches), min(row, replies.count * replies.longest))
    return _Step(config.batch.size, row)


def _read(config: TrainingConfig, each: PlannedRole, max_tokens: int, whole: int) -> int:
    """By a model that learns, of rows of more than one step together; 0 where it reads none."""
    if isinstance(config, OnlineConfig):  # OnlineDPO's looks at all replies that another program has drawn
        is_watched = config.generation.engine is Generation.vllm and isinstance(config, OnlineDPOConfig)
        return max(max_tokens, widest_rows(config).together) if is_watched and not each.role.is_scalar else 0
    is_reference = isinstance(config, ReferencedConfig) and config.reference.path is None
    return whole if is_reference or has_rows(config.data, "eval") else 0

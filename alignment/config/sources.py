"""Where rows of data are, and how they are laid out."""

from dataclasses import dataclass, field
from enum import Enum

from alignment.config.errors import require
from alignment.config.marks import INPUT


class Format(str, Enum):
    """How a row is laid out (alignment/data/row_parsers.py shows each)."""

    native = "native"
    """prompt with completion, or with chosen and rejected, or alone; the replies are text or messages. Beside a prompt
    may stand its tags, in every format: {"prompt": ..., "tags": ["safety"]}."""
    hh = "hh"
    r"""chosen and rejected are whole dialogues in the "\n\nHuman: ...\n\nAssistant: ..." form of HH-RLHF."""
    alpaca = "alpaca"
    """instruction, input and output (or chosen and rejected)."""
    sharegpt = "sharegpt"
    """conversations of {from, value}, with chosen and rejected turns where they are pairs."""
    messages = "messages"
    """messages of {role, content}, the last of which is the reply."""
    text = "text"
    """text, whole, without turns or template, as in pre-training; for sft and ptx.data."""
    toy = "toy"
    """The toy task's own rows, native in layout."""


@dataclass(slots=True)
class SourceConfig:
    path: str | None = field(default=None, metadata=INPUT)
    """.jsonl, .json, either with .gz, .parquet, or a folder saved by `datasets`. Null: none (or the toy task)."""
    limit: int | None = None
    """Take the first rows only; in the toy task, how many rows to make."""
    join: dict[str, str] = field(default_factory=dict, metadata=INPUT)
    """Further files, each by a name of yours, whose rows follow those of `path`, as those of earlier rounds do."""

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, "limit must be > 0", self.limit)
        require(not self.join or self.path is not None, "join needs path, whose rows come first", self.join)


@dataclass(slots=True)
class TrainSource(SourceConfig):
    """The rows that a run learns from."""


@dataclass(slots=True)
class EvalSource(SourceConfig):
    """The rows that a run is evaluated on, and learns nothing from."""

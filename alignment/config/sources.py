"""Where rows of data are, and how they are laid out."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any

from alignment.config.base import Config
from alignment.config.errors import require
from alignment.config.marks import DATA


class Format(str, Enum):
    """How a row is laid out (alignment/data/row_parsers.py shows each)."""

    auto = "auto"
    """Told from the first rows, by their fields and what those hold, and said."""
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
    helpsteer = "helpsteer"
    """HelpSteer's: a prompt, whose turns <extra_id_1> may part, with a response and its ratings, of which helpfulness
    is the score, or with two responses and a preference from -3 to 3, whose size is the pair's margin."""
    oasst = "oasst"
    """OpenAssistant's messages, of prompter and assistant: trees, one a row, or single messages, those of a tree next
    to each other. Each question is a row: its best-ranked reply is learned, or chosen before each ranked behind."""
    toy = "toy"
    """The toy task's own rows, native in layout."""


@dataclass(slots=True)
class SourceConfig(Config):
    path: Any = field(default=None, metadata=DATA)
    """A file, .jsonl, .json, .csv, .tsv, each also with .gz or .zst, .parquet or .arrow; a folder of such files, or one
    saved by `datasets`; a pattern, as data/*.jsonl; a split of a data set on the hub, org/name:split or
    org/name/config:split@revision; or a list of any of them. Null: none (or the toy task)."""
    limit: int | None = None
    """Take the first rows only; in the toy task, how many rows to make."""
    join: dict[str, str] = field(default_factory=dict, metadata=DATA)
    """Further files, each by a name of yours, whose rows follow those of `path`, as those of earlier rounds do."""

    def __post_init__(self) -> None:
        if isinstance(self.path, list | tuple):
            self.path = [str(each) if isinstance(each, PurePath) else each for each in self.path]
        several = self.path if isinstance(self.path, list) else [self.path]
        is_text = self.path is None or (bool(several) and all(isinstance(each, str) and each for each in several))
        require(is_text, "path must be a file, a folder, a pattern, or a list of them", self.path)
        require(self.limit is None or self.limit > 0, "limit must be > 0", self.limit)
        require(not self.join or self.path is not None, "join needs path, whose rows come first", self.join)

    def paths(self) -> list[str]:
        """All that is read, in order."""
        own = [] if self.path is None else self.path if isinstance(self.path, list) else [self.path]
        return [*own, *self.join.values()]

    def first_path(self) -> str | None:
        """The first that is read; None where there is none."""
        return next(iter(self.paths()), None)


@dataclass(slots=True)
class TrainSource(SourceConfig):
    """The rows that a run learns from."""


@dataclass(slots=True)
class EvalSource(SourceConfig):
    """The rows that a run is evaluated on, and learns nothing from."""

"""Where rows of data are, and how they are laid out: one file or several, held-out rows, sets with names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any

from alignment.config.base import Config
from alignment.config.errors import require
from alignment.config.marks import DATA

TAKEN = (  # with which metrics' own names begin
    *("reward", "rewards", "logps", "kl", "length", "moments"),
    *("stderr", "value", "ptx", "alarm", "ranges", "router"),
)
COLDEST = 0.1  # below it n**(1/T) is beyond any float, and a smaller source has no row in any run


class Format(str, Enum):
    """How a row is laid out (alignment/data/row_parsers.py shows each)."""

    auto = "auto"
    """Told from the first rows, by their fields and what those hold, and said."""
    native = "native"
    """prompt with completion, or with chosen and rejected, or alone; the replies are text or messages. Beside a
    completion label (kto) or score (reward_regression); completions and labels are a reply's steps (reward_process).
    Beside a prompt may stand its tags, in every format: {"prompt": ..., "tags": ["safety"]}."""
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
    """as HelpSteer has it: a prompt, whose turns <extra_id_1> may part, with a response and its ratings, of which
    helpfulness is the score, or with two responses and a preference from -3 to 3, whose size is the pair's margin."""
    oasst = "oasst"
    """messages as OpenAssistant has them, of prompter and assistant: trees, one a row, or single messages, those of a
    tree next to each other. Each question is a row: its best-ranked reply is learned, or chosen before each
    that is ranked behind it."""
    toy = "toy"
    """The toy task's own rows, native in layout."""


@dataclass(slots=True)
class SourceConfig(Config):
    path: Any = field(default=None, metadata=DATA)
    """A file, .jsonl, .json, .csv, .tsv, each also with .gz or .zst, .parquet or .arrow; a folder of such files, or one
    saved by `datasets`; a pattern, as data/*.jsonl; a split of a data set on the hub, org/name:split or
    org/name/config:split@revision; or a list of any of them. Null: no rows, or with
    data.format=toy those of the toy task."""
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

    def named(self) -> "Mapping[str, NamedSource]":
        """The sources in place of `path`, where there are several, in the order of their names."""
        return {}

    def beside(self) -> dict[str, object]:
        """The keys that say where rows are, in place of `path`, with their values."""
        return {}

    def first_path(self) -> str | None:
        """The first that is read; None where there is none."""
        return next((path for source in (self, *self.named().values()) for path in source.paths()), None)


@dataclass(slots=True)
class NamedSource(SourceConfig):
    """One of several sources, by a name of the user's."""

    format: Format | None = None
    """How its rows are laid out. Null: as data.format says."""
    columns: dict[str, str] = field(default_factory=dict)
    """Its own columns, before those of data.columns."""


@dataclass(slots=True)
class MixedSource(NamedSource):
    weight: float | None = None
    """How many of a step's rows are its, as a share of all sources' weights. Null, for all of them: by their rows."""

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        is_finite = self.weight is None or 0 < self.weight < float("inf")
        require(is_finite, "weight must be > 0 and finite (a source that is not to count is left out)", self.weight)


@dataclass(slots=True)
class TrainSource(SourceConfig):
    """The rows that a run learns from."""

    mix: dict[str, MixedSource] = field(default_factory=dict)
    """In place of path, several sources, each by a name of yours: {helpful: {path: a.jsonl, weight: 2}, safety: {path:
    b.jsonl, weight: 1}}. Each step has rows of all of them, in the shares of their weights; each is gone through in
    shuffled passes of its own."""
    temperature: float = 1.0
    """T of a mix without weights: a source of n rows gets a share proportional to n**(1/T). 1: every row counts alike;
    above 1 small sources count more (mT5's is 1/0.3); inf (in YAML .inf): all sources get the same share."""

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        _require_named(self, self.mix, "mix")
        weights = {name: source.weight for name, source in self.mix.items()}
        has_weights = any(weight is not None for weight in weights.values())
        rule = "mix must have a weight for each source, or for none (they count by their rows then, and by temperature)"
        require(not has_weights or None not in weights.values(), rule, weights)
        rule = f"temperature must be >= {COLDEST} (inf, in YAML .inf: all sources alike)"
        require(self.temperature >= COLDEST, rule, self.temperature)
        rule = "temperature must be 1 without a mix, and in one that gives weights"
        require(self.temperature == 1 or (bool(self.mix) and not has_weights), rule, self.temperature)

    def named(self) -> Mapping[str, NamedSource]:
        return dict(sorted(self.mix.items()))

    def beside(self) -> dict[str, object]:
        return {"mix": self.mix}


@dataclass(slots=True)
class EvalSource(SourceConfig):
    """The rows that a run is evaluated on, and learns nothing from."""

    fraction: float | None = None
    """In place of path: hold out about this share of the prompts in data.train, each with all of its rows. Which ones
    depends on their texts and the seed alone, so that rows added elsewhere move none."""
    sets: dict[str, NamedSource] = field(default_factory=dict)
    """In place of path, several sets, each by a name of yours: {helpful: {path: a.jsonl}, safety: {path: b.jsonl}}. The
    log has eval/helpful/loss and eval/safety/loss beside eval/loss, which is of the rows of all of them together."""

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        _require_named(self, self.sets, "sets")
        rule = "fraction must be in (0, 1), a share of the training prompts"
        require(self.fraction is None or 0 < self.fraction < 1, rule, self.fraction)
        given = {"path": self.path, "limit": self.limit, "fraction": self.fraction, "sets": [*self.sets] or None}
        asked = {key: value for key, value in given.items() if value is not None and (key != "limit" or not self.path)}
        rule = "at most one of path (of the toy task: limit), fraction and sets must be set"
        require(len(asked) <= 1, rule, asked)

    def named(self) -> Mapping[str, NamedSource]:
        return dict(sorted(self.sets.items()))

    def beside(self) -> dict[str, object]:
        return {"sets": self.sets, "fraction": self.fraction}


def _require_named(source: SourceConfig, named: Mapping[str, NamedSource], key: str) -> None:
    """That sources with names stand alone, and each says where it is."""
    if not named:
        return
    rule = f"{{}} must be unset where {key} names the sources, each with its own"
    require(source.path is None, rule.format("path"), source.path)
    require(source.limit is None, rule.format("limit"), source.limit)
    for name, each in named.items():
        require(name.isidentifier(), f"{key} must have names without spaces and signs", name)
        require(name not in TAKEN, f"{key} must have other names than metrics have ({', '.join(TAKEN)})", name)
        require(each.path is not None, f"{key}.{name}.path is required", each.path)


def require_one_set(source: EvalSource, key: str, task: str) -> None:
    """Raise `ConfigError` where a task that knows one set of held-out rows, of `path`, is given others."""
    for name, value in source.beside().items():
        require(not value, f"{key}.{name} must be unset for {task}, whose rows are those of {key}.path", value)


def require_even(source: TrainSource, task: str) -> None:
    """Raise `ConfigError` where sources are to count unequally in a task that takes each row once."""
    weights = {name: one.weight for name, one in source.mix.items() if one.weight is not None}
    rule = f"data.train.mix must have neither weights nor a temperature for {task}, which takes each row once"
    require(not weights and source.temperature == 1, rule, weights or source.temperature)


def require_files(named: Mapping[str, NamedSource], format: Format, key: str) -> None:
    """Raise `ConfigError` where a source with a name is to be of the toy task, which has no files. `format`: of those
    that have none of their own."""
    rule = f"data.format must be one of files for {key} (data=native), whose sources are files"
    require(not named or format is not Format.toy, rule, format.value)
    for name, source in named.items():
        require(source.format is not Format.toy, f"{key}.{name}.format must be one of files", Format.toy.value)

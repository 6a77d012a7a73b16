"""Rows of data: where they are, what form they have, and what is taken of them."""

import math
from dataclasses import dataclass, field, replace
from enum import Enum

from alignment.config.base import Config
from alignment.config.columns import ExampleKind, require_columns, require_known
from alignment.config.errors import ConfigError, require
from alignment.config.margin import MarginConfig
from alignment.config.sources import EvalSource, Format, SourceConfig, TrainSource, require_files

TOY = "alignment.toy."


class Template(str, Enum):
    """How a dialogue becomes one text."""

    chat = "chat"
    """By the tokenizer's chat template."""
    none = "none"
    """Not at all: prompts and replies are texts that hold whatever tells them apart, control tokens too."""


class Learn(str, Enum):
    """Which of the assistant's turns of a demonstration carry loss."""

    all = "all"
    """Every one, but those whose own `weight` is 0."""
    last = "last"
    """The last of these alone."""


class BadRow(str, Enum):
    """What to do with a row that breaks a rule."""

    error = "error"
    """It ends the run before it begins."""
    skip = "skip"
    """It is left out, counted and said."""


@dataclass(slots=True)
class DataConfig(Config):
    format: Format = Format.auto
    """How a row is laid out."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our field -> the file's column: {prompt: question, chosen: better}; {completion: answer.text} is the `text` of
    {"answer": {"text": ...}}. In every format; what is not named here has the name that the format gives it."""
    train: TrainSource = field(default_factory=TrainSource)
    eval: EvalSource = field(default_factory=EvalSource)
    margin: MarginConfig = field(default_factory=MarginConfig)
    scores: dict[str, float] = field(default_factory=dict)
    """column -> weight: for tasks that learn scores, a reply's is the weighted sum of these columns. {}: `score`."""
    step_separator: str = "\n"
    """What stands between the steps of a reply, for tasks that learn from steps."""
    max_length: int = 1024
    """Tokens of a prompt and one of its completions; what is longer is cut, counted and said. Tasks that draw their own
    completions have generation.max_new_tokens beside max_prompt_length."""
    max_prompt_length: int = 512
    """Tokens of a prompt; of a longer one the beginning is cut off, counted and said."""
    on_bad_row: BadRow = BadRow.error
    """What becomes of a row that breaks a rule."""
    template: Template = Template.chat
    """How turns become one text."""
    system: str | None = None
    """The system turn of dialogues that have none of their own. Null: they stay without."""
    learn: Learn = Learn.all
    """Which turns of the assistant a demonstration teaches; what a row gives as its `prompt` is context."""

    def __post_init__(self) -> None:
        _require_room(self.max_length, self.max_prompt_length)
        rule = "data.template=none goes with data.format=native or text, whose prompts and replies may be texts"
        texts = (Format.auto, Format.native, Format.text)
        require(self.template is Template.chat or self.format in texts, rule, self.format.value)
        rule = (
            "data.system goes with dialogues that a template lays out, not with data.template=none or data.format=text"
        )
        dialogues = self.template is Template.chat and self.format is not Format.text
        require(self.system is None or dialogues, rule, self.system)
        rule = "data.system must be a text that is not blank"
        require(self.system is None or bool(self.system.strip()), rule, self.system)
        require_columns(self.columns, self.margin, "data.columns")
        given = self.scores.values()
        finite = all(isinstance(weight, int | float) and math.isfinite(weight) and weight for weight in given)
        require(finite, "data.scores must map to finite weights other than 0", self.scores)
        require(bool(self.step_separator), "data.step_separator must not be empty", self.step_separator)
        if self.format is Format.toy:
            require(
                not self.columns, "data.columns goes with rows of a file, of which the toy task has none", self.columns
            )
            for name, source in (("train", self.train), ("eval", self.eval)):
                rule = f"data.{name}.path needs its data.format (data.format=toy makes its own rows)"
                require(source.path is None, rule, source.path)
        else:
            rule = "data.eval.limit goes with data.eval.path, the held-out rows (null: there are none)"
            require(self.eval.path is not None or self.eval.limit is None, rule, self.eval.limit)
        require_files(self.train.named(), self.format, "data.train.mix")
        require_files(self.eval.named(), self.format, "data.eval.sets")

    def file_of(self, name: str) -> str | None:
        """The file, or the first of them, that has the rows of the split `name`; None where they have no file."""
        return (self.train if name == "train" or self.eval.fraction is not None else self.eval).first_path()


def _require_room(max_length: int, max_prompt_length: int) -> None:
    """Raise `ConfigError` where a prompt of the most tokens would leave none to its reply."""
    require(max_length >= 2, "data.max_length must be >= 2, a token of a prompt and one of its reply", max_length)
    require(max_prompt_length >= 1, "data.max_prompt_length must be >= 1", max_prompt_length)
    if max_prompt_length >= max_length:
        rule = f"data.max_prompt_length must be below data.max_length={max_length}, which has prompt and reply in it"
        ways = f"data.max_prompt_length={max_length // 2} beside it, or data.max_length={2 * max_prompt_length}"
        raise ConfigError(f"{rule}, got {max_prompt_length}: set {ways}")


def each_source(source: SourceConfig, data: DataConfig) -> list[tuple[str, SourceConfig, DataConfig]]:
    """(name, source, config of the data as it is for its rows) of each source of a split, in the order in which they
    are read; of one without a name, by the name ""."""
    named = source.named().items()
    settings = {
        name: replace(data, format=one.format or data.format, columns={**data.columns, **one.columns})
        for name, one in named
    }
    return [(name, one, settings[name]) for name, one in named] or [("", source, data)]


def has_rows(data: DataConfig, name: str) -> bool:
    """Whether the split `name`, `train` or `eval`, has a source."""
    source = {"train": data.train, "eval": data.eval}[name]
    if source is data.eval and data.eval.fraction is not None:
        return has_rows(data, "train")
    return bool(source.named()) or is_given(data, source)


def is_given(data: DataConfig, source: SourceConfig) -> bool:
    """Whether a source says where its rows come from: a path, or of the toy task a number of them."""
    return (source.limit if data.format is Format.toy else source.path) is not None


def require_rows(data: DataConfig, name: str, *, why: str = "") -> None:
    """Raise `ConfigError` where the split `name` has no source; `why`: what asks for it."""
    require(has_rows(data, name), required(data, f"data.{name}") + why, None)


def required(data: DataConfig, key: str) -> str:
    """The rule that a split breaks which has no rows; `key`: where it is in the config."""
    return f"{key}.limit is required for data.format=toy" if data.format is Format.toy else f"{key}.path is required"


GRADED = "pairs with margins (data=native reads the same rows without their ratings)"


def require_read(data: DataConfig, kind: ExampleKind | None, part: str = "data") -> None:
    """Raise `ConfigError` where a key says how to read what a task takes nothing of: margins, which pairs alone have,
    scores, steps, learned turns. `kind`: what it takes; None: it may be any."""
    default = DataConfig()
    read = (
        ("margin.scale", data.margin.scale.value, default.margin.scale.value, ExampleKind.pairs, GRADED),
        ("scores", data.scores, default.scores, ExampleKind.scored, "scored replies"),
        ("step_separator", data.step_separator, default.step_separator, ExampleKind.steps, "replies in steps"),
        ("learn", data.learn.value, default.learn.value, ExampleKind.demonstrations, "demonstrations"),
    )
    if kind not in (None, ExampleKind.prompts):  # of prompts a function may read whatever the rows have
        more = [*data.scores, data.margin.column, data.margin.chosen_column, data.margin.rejected_column]
        require_known(data.columns, [name for name in more if name is not None], f"{part}.columns", kind)
    for key, value, unset, reader, what in read:
        rule = f"{part}.{key} must be {unset!r} for a task that learns of no {what}"
        require(kind in (None, reader) or value == unset, rule, value)


def require_no_rows(source: SourceConfig, key: str, task: str) -> None:
    """Raise `ConfigError` where rows are named that the task does not read."""
    require(source.path is None, f"{key}.path must be null for {task}, which reads no such rows", source.path)
    for name, value in source.beside().items():
        require(not value, f"{key}.{name} must be unset for {task}, which reads no such rows", value)


def require_own_questions(data: DataConfig, functions: dict[str, str | None]) -> None:
    """Raise `ConfigError` where a function that knows the toy task's questions alone is to score replies to other
    ones. `functions`: key -> dotted path."""
    for key, path in functions.items():
        if path is not None and path.startswith(TOY) and data.format is not Format.toy:
            rule = f"{key}={path} knows the toy task's questions alone (data.format=toy): set {key} to null"
            raise ConfigError(f"{rule}, or to a function of your own, with data.format={data.format.value}")

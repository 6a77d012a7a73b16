"""A split of the data to examples: read, parse, render, encode. What was skipped or cut is counted and said."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from alignment.config.data import BadRow, DataConfig, ExampleKind, Format, SourceConfig, Template, each_source
from alignment.config.errors import ConfigError
from alignment.data.carried import NOTHING, Carried
from alignment.data.checks import signs_of
from alignment.data.layout import Laid, laid_out
from alignment.data.records import DataError, GradeError, LayoutError, Record, Source
from alignment.data.row_reader import RowReader
from alignment.data.tokenize import Example, Truncation
from alignment.terminal import progress, say
from alignment.toy import ToyError, demonstrations, pairs, prompts, scored, stepwise

TOY_ROWS = {
    ExampleKind.demonstrations: demonstrations,
    ExampleKind.pairs: pairs,
    ExampleKind.labeled: pairs,
    ExampleKind.scored: scored,
    ExampleKind.steps: stepwise,
    ExampleKind.prompts: prompts,
}
TOY_SEED = 0
# With which a prompt begins that a template has laid out already; a tokenizer's own control tokens are refused.
LAID_OUT = re.compile(
    r"\s*(<s>\s*)?(<\|im_start\|>|<\|begin_of_text\|>|<\|start_header_id\|>|<start_of_turn>|<bos>|\[INST\]"
    r"|<\|(user|system)\|>|Human:(?=[\s\S]*\n\nAssistant:))|\n\nHuman:"
)


@dataclass(slots=True)
class Loaded:
    """A split, row by row, and what happened on the way."""

    records: list[Record]
    examples: list[Example]
    skipped: list[DataError]
    truncation: Truncation
    sources: dict[str, int] = field(default_factory=dict)  # name -> rows, in their order; {}: one, without a name
    without_calls: int = 0  # dialogues
    given_system: int = 0  # dialogues that begin with data.system
    weighted: int = 0  # prompts with a `weight`, which only rows that are learned from have

    def summary(self, name: str) -> str:
        """One line for the terminal."""
        of_each = ", ".join(f"{source} {rows}" for source, rows in self.sources.items())
        parts = [f"{name}: {len(self.examples)} rows" + (f" ({of_each})" if of_each else "")]
        if self.skipped:
            parts.append(f"{len(self.skipped)} bad rows skipped (first: {self.skipped[0]})")
        for what, count in (("prompts", self.truncation.prompts), ("completions", self.truncation.completions)):
            if count:
                parts.append(f"{count} {what} truncated")
        if self.truncation.steps:
            parts.append(f"{self.truncation.steps} steps beyond data.max_length, with their labels")
        labels = {label for example in self.examples for label in example.labels}
        if len(labels) == 1 and name == "train":
            parts.append(f"all labels alike, {labels.pop()}: there is no difference to learn")
        if twice := self.laid_out_twice():
            parts.append(twice)
        if self.without_calls:
            parts.append(
                f"{self.without_calls} dialogues without their `tool_calls`, which the chat template leaves out"
            )
        if self.given_system:
            parts.append(f"{self.given_system} rows begin with data.system")
        if self.weighted:
            parts.append(f"{self.weighted} prompts with a `weight`, which is not read: prompts count alike")
        dropped = sum(record.dropped > 0 for record in self.records)
        if dropped:
            parts.append(f"{dropped} dialogues without their last turns, which have no reply")
        return ", ".join(parts)

    def laid_out_twice(self) -> str:
        """How many prompts begin as another family's template has them, and the way out; "" where none does."""
        found = [(record.source, mark) for record in self.records if (mark := _laid_out(record))]
        if not found:
            return ""
        first, mark = found[0]
        what = f"{len(found)} prompts begin as another template has them (first: {first}, {mark!r})"
        way = "data.template=none takes texts as they are, data.format=hh whole dialogues of Human: and Assistant:"
        return f"{what} and are laid out once more ({way})"


def joined(sources: Mapping[str, Loaded]) -> Loaded:
    """Several sources as one split, each behind the one before it."""
    of_all = sources.values()
    return Loaded(
        records=[record for loaded in of_all for record in loaded.records],
        examples=[example for loaded in of_all for example in loaded.examples],
        skipped=[error for loaded in of_all for error in loaded.skipped],
        truncation=Truncation(
            prompts=sum(loaded.truncation.prompts for loaded in of_all),
            completions=sum(loaded.truncation.completions for loaded in of_all),
            steps=sum(loaded.truncation.steps for loaded in of_all),
        ),
        sources={name: len(loaded.examples) for name, loaded in sources.items()},
        without_calls=sum(loaded.without_calls for loaded in of_all),
        given_system=sum(loaded.given_system for loaded in of_all),
        weighted=sum(loaded.weighted for loaded in of_all),
    )


def _laid_out(record: Record) -> str:
    """The mark of another family with which the first question begins; "" where it does not."""
    asked = next((turn["content"] for turn in record.prompt if turn["role"] == "user"), "")
    found = LAID_OUT.match(asked) if record.template is Template.chat else None
    return found[0].strip() if found else ""


def load_split(
    name: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    need: ExampleKind,
    *,
    part: str = "data",
    carried: Carried = NOTHING,
) -> Loaded | None:
    """The split `train` or `eval` of what is `part` in the config, all of its sources one behind another; None where it
    names none.

    Args:
        carried: what prompts keep of their rows.

    Raises:
        ConfigError: the split, or one of its sources, has no usable row.
        DataError: a bad row, under `data.on_bad_row=error`; names file and line. A margin that is asked for and missing
            is one under `skip` too.
    """
    source, key = {"train": (config.train, "train.mix"), "eval": (config.eval, "eval.sets")}[name]
    if not source.named():
        return load_source(name, source, config, tokenizer, need, part, carried)
    found = {}
    for each, one, own in each_source(source, config):
        found[each] = load_source(f"{key}.{each}", one, own, tokenizer, need, part, carried)
    return joined({each: loaded for each, loaded in found.items() if loaded is not None})


def load_source(
    name: str,
    source: SourceConfig,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    need: ExampleKind,
    part: str,
    carried: Carried,
) -> Loaded | None:
    """The rows of one source, which is `name` in the part `part` of the config; None where there are none to read.

    Raises:
        as `load_split`.
    """
    need = ExampleKind(need)  # a word from a loop of somebody's own is one too
    _require_use(config, need, part)
    found = _rows(f"{part}.{name}", source, config, need)
    if found is None:
        return None
    rows = list(found)
    columns = carried.names([row for _, row, _ in rows if not isinstance(row, DataError)], f"{part}.{name}")
    separator = config.step_separator if need is ExampleKind.steps else ""
    signs = signs_of(tokenizer, config.template, separator, f"{part}.step_separator")
    loaded = Loaded([], [], [], Truncation())
    read = RowReader(config, tokenizer, need, part, signs, columns, loaded.truncation)
    for at, row, format in progress(rows, f"reading {name}"):
        try:
            if isinstance(row, DataError):
                raise row
            made = read(at, row, format)
        except DataError as error:
            if isinstance(error, GradeError):
                raise
            if config.on_bad_row is BadRow.error:
                # Where no row before it could be read, another layout is likelier than a bad row.
                is_odd = bool(loaded.examples) or not isinstance(error, LayoutError)
                way = f"; {part}.on_bad_row=skip leaves such rows out" if is_odd else ""
                raise type(error)(error.source, error.what + way) from error.__cause__
            loaded.skipped.append(error)
            continue
        loaded.given_system += made.was_given_system
        loaded.without_calls += made.lost_calls
        loaded.weighted += made.has_unread_weight
        loaded.records += made.records
        loaded.examples += made.examples
    if not loaded.examples:
        first = f" (first: {loaded.skipped[0]})" if loaded.skipped else ""
        raise ConfigError(f"{part}.{name}.path must have at least one good row, got {source.path!r}{first}")
    return loaded


def _require_use(config: DataConfig, need: ExampleKind, part: str) -> None:
    """Raises:
    ConfigError: something is set that what the task takes of a row has no use for.
    """
    if config.format is Format.text and need is not ExampleKind.demonstrations:
        rule = f"{part}.format=text has texts alone, for sft and ptx.data"
        raise ConfigError(f"{rule}, got a task that needs {need.value}")
    if config.scores and need is not ExampleKind.scored:
        raise ConfigError(
            f"{part}.scores goes with a task that learns scores, such as reward_regression, got {config.scores}"
        )
    if need is not ExampleKind.steps and config.step_separator != "\n":
        rule = f"{part}.step_separator goes with a task that learns from steps, such as reward_process"
        raise ConfigError(f"{rule}, got {config.step_separator!r}")


def _rows(key: str, source: SourceConfig, config: DataConfig, need: ExampleKind) -> Iterator[Laid] | None:
    if config.format is not Format.toy:
        return None if source.path is None else laid_out(source, config, need, key, say)
    if source.limit is None:
        return None
    split = key.rpartition(".")[2]
    try:
        made = TOY_ROWS[need](source.limit, TOY_SEED, split)
    except ToyError as error:
        raise ConfigError(f"{key}.limit: {error}, got {source.limit}") from error
    return ((Source(f"toy/{split}", line), row, Format.toy) for line, row in enumerate(made, start=1))

"""One row to what is trained on: parsed, laid out, encoded, and each rule asked on the way."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import TypeVar

from alignment.config.data import DataConfig, ExampleKind
from alignment.config.errors import ConfigError
from alignment.config.sources import Format
from alignment.data.chat import Rendered, render
from alignment.data.checks import Signs, leaves_out_calls, require_difference, require_plain_texts, require_read
from alignment.data.detect import way_out
from alignment.data.formats import parse
from alignment.data.json_rows import Row
from alignment.data.layout import Laid
from alignment.data.margins import margin_from
from alignment.data.records import DataError, LayoutError, Record, Source
from alignment.data.texts import Texts
from alignment.data.tokenize import Example, Limits, Truncation, encode_rendered, read_of

Argument = TypeVar("Argument")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class ReadRow:
    """What became of a row."""

    records: list[Record]
    rendered: list[Rendered]
    was_given_system: bool
    lost_calls: bool
    has_unread_weight: bool
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RowReader:
    """Bound once to what the rows of a split share."""

    config: DataConfig
    texts: Texts
    need: ExampleKind
    part: str  # where `config` is in the run's
    signs: Signs
    columns: list[str]  # that prompts keep
    truncation: Truncation  # what is cut is added to it

    def __call__(self, rows: Sequence[Laid]) -> Iterator[ReadRow | DataError]:
        """Each row, or the rule that it breaks. All of them are laid out, then tokenized together."""
        read = [_tried(self._laid_out, row) for row in rows]
        laid = [row for row in read if isinstance(row, ReadRow)]
        pairs = chain.from_iterable(zip(row.records, row.rendered, strict=True) for row in laid)
        self.texts.look_ahead(text for record, rendered in pairs for text in read_of(record, rendered, self.texts))
        return (_tried(self._encoded, row) if isinstance(row, ReadRow) else row for row in read)

    def _laid_out(self, laid: Laid) -> ReadRow:
        """Without its tokens.

        Raises:
            DataError: the row breaks a rule.
        """
        at, row, format = laid
        if isinstance(row, DataError):
            raise row
        record, system = self._record(at, row, format), self.config.system
        is_given = system is not None and not (record.prompt and record.prompt[0]["role"] in ("system", "developer"))
        if is_given:
            record = replace(record, prompt=[{"role": "system", "content": system}, *record.prompt])
        require_plain_texts(record, self.signs)
        records = record.unpaired() if self.need is ExampleKind.labeled else [record]
        tokenizer, rendered = self.texts.tokenizer, []
        for each in records:
            rendered.append(render(each, tokenizer))
            require_read(each, tokenizer, rendered[-1])
        unread = self.need is ExampleKind.prompts and row.get("weight") not in (None, 1)
        return ReadRow(records, rendered, is_given, leaves_out_calls(record, tokenizer), unread)

    def _encoded(self, row: ReadRow) -> ReadRow:
        """Raises:
        DataError: the row breaks a rule of its tokens.
        """
        limits = Limits(self.config.max_length, self.config.max_prompt_length)
        for record, rendered in zip(row.records, row.rendered, strict=True):
            example = encode_rendered(record, rendered, self.texts, limits, self.truncation)
            require_difference(example, limits)
            row.examples.append(example)
        return row

    def _record(self, at: Source, row: Row, format: Format) -> Record:
        config, need = self.config, self.need
        self._require_use(format)
        try:
            record = parse(
                row,
                at,
                format,
                need,
                lambda row, source: margin_from(row, source, **asdict(config.margin)),
                learn=config.learn,
                template=config.template,
                scores=config.scores,
                separator=config.step_separator if need is ExampleKind.steps else "",
            )
        except LayoutError as error:
            raise LayoutError(at, f"{error.what}{way_out(row, format, self.part, self.need)}") from None
        return replace(record, columns={name: row.get(name) for name in self.columns}) if self.columns else record

    def _require_use(self, format: Format) -> None:
        """Raises:
        ConfigError: rows of a layout have nothing of what the task needs, whatever they hold.
        """
        if format is Format.text and self.need is not ExampleKind.demonstrations:
            rule = f"{self.part}.format=text has texts alone, for sft and ptx.data"
            raise ConfigError(f"{rule}, got a task that needs {self.need.value}")
        if format is Format.text and self.config.system is not None:
            rule = f"{self.part}.system goes with dialogues, and these rows are texts"
            raise ConfigError(f"{rule}, got {self.config.system!r:.60}")
        if self.need is ExampleKind.steps and format not in (Format.native, Format.toy):
            rule = f"{self.part}.format must be native for a task that learns from the steps of a reply"
            raise ConfigError(f"{rule}, got {format.value}")


def _tried(make: Callable[[Argument], Made], given: Argument) -> Made | DataError:
    try:
        return make(given)
    except DataError as error:
        return error

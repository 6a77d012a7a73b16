"""One row to what is trained on: parsed, laid out, encoded, and each rule asked on the way."""

from dataclasses import asdict, dataclass, replace

from transformers import PreTrainedTokenizerBase

from alignment.config.data import DataConfig, ExampleKind
from alignment.config.errors import ConfigError
from alignment.config.sources import Format
from alignment.data.chat import render
from alignment.data.checks import Signs, leaves_out_calls, require_difference, require_plain_texts, require_read
from alignment.data.detect import way_out
from alignment.data.formats import parse
from alignment.data.json_rows import Row
from alignment.data.margins import margin_from
from alignment.data.records import LayoutError, Record, Source
from alignment.data.tokenize import Example, Limits, Truncation, encode_rendered


@dataclass(frozen=True, slots=True)
class ReadRow:
    """What became of a row."""

    records: list[Record]
    examples: list[Example]
    was_given_system: bool
    lost_calls: bool
    has_unread_weight: bool


@dataclass(frozen=True, slots=True)
class RowReader:
    """Bound once to what the rows of a split share."""

    config: DataConfig
    tokenizer: PreTrainedTokenizerBase
    need: ExampleKind
    part: str  # where `config` is in the run's
    signs: Signs
    columns: list[str]  # that prompts keep
    truncation: Truncation  # what is cut is added to it

    def __call__(self, at: Source, row: Row, format: Format) -> ReadRow:
        """Raises:
        DataError: the row breaks a rule.
        """
        record, system = self._record(at, row, format), self.config.system
        is_given = system is not None and not (record.prompt and record.prompt[0]["role"] in ("system", "developer"))
        if is_given:
            record = replace(record, prompt=[{"role": "system", "content": system}, *record.prompt])
        require_plain_texts(record, self.signs)
        limits = Limits(self.config.max_length, self.config.max_prompt_length)
        records = record.unpaired() if self.need is ExampleKind.labeled else [record]
        examples = []
        for each in records:
            rendered = render(each, self.tokenizer)
            require_read(each, self.tokenizer, rendered)
            examples.append(encode_rendered(each, rendered, self.tokenizer, limits, self.truncation))
            require_difference(examples[-1], limits)
        unread = self.need is ExampleKind.prompts and row.get("weight") not in (None, 1)
        return ReadRow(records, examples, is_given, leaves_out_calls(record, self.tokenizer), unread)

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

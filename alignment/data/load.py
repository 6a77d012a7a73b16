"""A split of the data to examples: read, parse, render, encode. What was skipped or cut is counted and said."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.config.data import BadRow, DataConfig, ExampleKind, Format, SourceConfig, each_source, is_given
from alignment.config.errors import ConfigError, UserError
from alignment.data.carried import NOTHING, Carried
from alignment.data.checks import signs_of
from alignment.data.layout import Laid, laid_out
from alignment.data.loaded import Loaded, joined, known
from alignment.data.parallel import cores, in_order
from alignment.data.records import DataError, GradeError, LayoutError, Record, Source
from alignment.data.row_key import contents_of, key_of
from alignment.data.row_reader import RowReader
from alignment.data.texts import Texts, borders_of
from alignment.data.tokenize import Example, Truncation
from alignment.terminal import progress, say
from alignment.toy import ToyError, demonstrations, pairs, prompts, scored, stepwise

CHUNK = 1000  # rows that a process reads at a time
TOY_ROWS = {
    ExampleKind.demonstrations: demonstrations,
    ExampleKind.pairs: pairs,
    ExampleKind.labeled: pairs,
    ExampleKind.scored: scored,
    ExampleKind.steps: stepwise,
    ExampleKind.prompts: prompts,
}
TOY_SEED = 0


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
    if not is_given(config, source):
        return None
    reading = Reading(f"{part}.{name}", source, config, tokenizer, need, part, carried)
    loaded = reading.kept() or reading.whole()
    if not loaded.examples:
        first = f" (first: {loaded.skipped[0]})" if loaded.skipped else ""
        raise ConfigError(f"{part}.{name}.path must have at least one good row, got {source.path!r}{first}")
    return loaded


@dataclass(frozen=True, slots=True)
class Reading:
    """Of the rows of one source."""

    key: str
    source: SourceConfig
    config: DataConfig
    tokenizer: PreTrainedTokenizerBase
    need: ExampleKind
    part: str
    carried: Carried

    @property
    def title(self) -> str:
        return f"reading {self.key.removeprefix(f'{self.part}.')}"

    def laid(self, tell: Callable[[str], object]) -> Iterator[Laid]:
        return _rows(self.key, self.source, self.config, self.need, tell)

    def whole(self) -> Loaded:
        """All of them in memory, as those of a small file are."""
        rows = list(self.laid(say))
        read = self.reader([row for _, row, _ in rows if not isinstance(row, DataError)])
        return read_rows(progress(rows, self.title), read)

    def reader(self, rows: Iterable[Mapping[str, Any]]) -> RowReader:
        """`rows`: all of them, of which prompts carry columns."""
        columns = self.carried.names(rows, self.key)
        separator = self.config.step_separator if self.need is ExampleKind.steps else ""
        signs = signs_of(self.tokenizer, self.config.template, separator, f"{self.part}.step_separator")
        texts = Texts(self.tokenizer, borders_of(self.tokenizer))
        return RowReader(self.config, texts, self.need, self.part, signs, columns, Truncation())

    def kept(self) -> Loaded | None:
        """Those of a large file, read once by several processes and mapped; None of a small one, and where they cannot
        be kept, which is said."""
        key = key_of(self.source, self.config, self.tokenizer, self.need, self.carried)
        if key is None:
            return None
        from alignment.data.row_cache import UnwritableError, kept_rows, place_of  # not above: pyarrow takes its time

        told: list[str] = []
        counted: list[Loaded] = []

        def together() -> tuple[list[str], Loaded]:
            if contents_of(self.source) != key[0]:  # of which these are not the rows
                raise UserError(f"{self.key}: its files have changed while they were read; run again once they rest")
            return told, _sum(counted)

        try:
            place = place_of([self.key, self.part, *key])
            with closing(self._batches(told, counted)) as batches:
                records, examples, (lines, loaded) = kept_rows(place, batches, together)
        except UnwritableError as error:
            say(f"{self.key}: the rows cannot be kept, each process reads them by itself ({error})")
            return None
        if not counted:  # another process has read them, or an earlier one
            say(f"{self.key}: {len(examples)} rows as they are kept in {place.parent}")
            for line in lines:
                say(line)
        return replace(loaded, records=records, examples=examples)

    def _batches(self, told: list[str], counted: list[Loaded]) -> Generator[Any, None, None]:
        """The rows as batches of a table, in order; what is told of the files is noted, and what is counted of a batch.
        Each row is read twice: first of all for what is wrong with a file, or with all of its rows."""

        def tell(line: str) -> None:
            told.append(line)
            say(line)

        first = self.laid(tell)
        read = self.reader(row for _, row, _ in first if not isinstance(row, DataError))
        deque(first, maxlen=0)
        chunks = enumerate(_chunks(self.laid(lambda line: None)))
        for batch, of_batch in progress(in_order(chunks, partial(as_counted, read), cores()), self.title):
            counted.append(of_batch)
            yield batch


def _chunks(rows: Iterator[Laid]) -> Iterator[list[Laid]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def as_counted(read: RowReader, chunk: tuple[int, list[Laid]]) -> tuple[Any, Loaded]:
    from alignment.data.row_cache import as_table

    number, rows = chunk
    loaded = read_rows(rows, replace(read, truncation=Truncation()), is_first=number == 0)
    return as_table(loaded.records, loaded.examples), replace(loaded, records=[], examples=[])


def _sum(counted: list[Loaded]) -> Loaded:
    return replace(joined({str(number): each for number, each in enumerate(counted)}), sources={})


def read_rows(rows: Iterable[Laid], read: RowReader, *, is_first: bool = True) -> Loaded:
    """is_first: whether no row has been read before these.

    Raises:
        as `load_split`.
    """
    records, examples = list[Record](), list[Example]()
    loaded = Loaded(records, examples, [], read.truncation)
    for made in chain.from_iterable(map(read, _chunks(iter(rows)))):
        if isinstance(made, DataError):
            if isinstance(made, GradeError):
                raise made
            if read.config.on_bad_row is BadRow.error:
                # Where no row before it could be read, another layout is likelier than a bad row.
                is_odd = bool(examples) or not is_first or not isinstance(made, LayoutError)
                way = f"; {read.part}.on_bad_row=skip leaves such rows out" if is_odd else ""
                raise type(made)(made.source, made.what + way) from made.__cause__
            loaded.skipped.append(made)
            continue
        loaded.given_system += made.was_given_system
        loaded.without_calls += made.lost_calls
        loaded.weighted += made.has_unread_weight
        records += made.records
        examples += made.examples
    return replace(loaded, **known(records, examples))


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


def _rows(
    key: str, source: SourceConfig, config: DataConfig, need: ExampleKind, tell: Callable[[str], object]
) -> Iterator[Laid]:
    if config.format is not Format.toy:
        return laid_out(source, config, need, key, tell)
    assert source.limit is not None  # as `is_given` says
    split = key.rpartition(".")[2]
    try:
        made = TOY_ROWS[need](source.limit, TOY_SEED, split)
    except ToyError as error:
        raise ConfigError(f"{key}.limit: {error}, got {source.limit}") from error
    return ((Source(f"toy/{split}", line), row, Format.toy) for line, row in enumerate(made, start=1))

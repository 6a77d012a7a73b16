"""The files of a source as rows that a parser knows: columns under our names, the layout told where it is not named."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from alignment.config.data import DataConfig, ExampleKind, Template
from alignment.config.errors import ConfigError, UserError
from alignment.config.sources import Format, SourceConfig
from alignment.data import helpsteer, oasst
from alignment.data.columns import Rows, peeked, with_columns
from alignment.data.detect import detect, known_by
from alignment.data.json_rows import Row
from alignment.data.read import read_each
from alignment.data.records import DataError, Source

Laid = tuple[Source, Row | DataError, Format]
TEXTS = (Format.native, Format.text)  # which data.template=none may read


def laid_out(
    source: SourceConfig, data: DataConfig, need: ExampleKind, key: str, tell: Callable[[str], object]
) -> Iterator[Laid]:
    """The rows of all files of a source, each with the layout that its parser is to read.

    Args:
        key: of the source in the config, "data.train".
        tell: is told the layout of each file that names none.

    Raises:
        UserError: a file cannot be read, a column is not there, or the layout cannot be told.
    """
    paths = source.paths()
    keys = [f"{key}.path" if len(paths) == 1 else f"{key}.path.{number}" for number in range(len(paths))]
    return chain.from_iterable(map(partial(_of_file, data, need, key, tell), keys, paths))


def _of_file(
    data: DataConfig, need: ExampleKind, key: str, tell: Callable[[str], object], name: str, path: str
) -> Iterator[Laid]:
    part = key.rpartition(".")[0]
    rows = with_columns(read_each(path), data.columns, f"{part}.columns")
    format = data.format
    if format is Format.auto:
        first, rows = peeked(rows)
        try:
            format = detect(first, part)
        except UserError as error:
            raise error if str(error).startswith(str(path)) else UserError(f"{name}: {error}") from error
        tell(f"{name}: read as {format.value} ({known_by(format, first)})")
        if data.template is Template.none and format not in TEXTS:
            rule = f"{part}.template=none goes with rows of prompts and replies as texts"
            raise ConfigError(f"{rule}, got rows of the layout {format.value} in {path!r}")
    return as_native(rows, format, need)


def as_native(rows: Rows, format: Format, need: ExampleKind) -> Iterator[Laid]:
    """What has no parser of its own as native rows."""
    match format:
        case Format.oasst:
            return ((source, row, Format.native) for source, row in oasst.native_rows(rows, need))
        case Format.helpsteer:
            return ((source, made, Format.native) for at in rows for source, made in _helpsteer(at, need))
        case _:
            return ((source, row, format) for source, row in rows)


def _helpsteer(at: tuple[Source, Any], need: ExampleKind) -> Iterable[tuple[Source, Row | DataError]]:
    source, row = at
    if isinstance(row, DataError):
        return [at]
    try:
        return [(source, made) for made in helpsteer.native_rows(row, source, need)]
    except DataError as error:
        return [(source, error)]

"""The files of a source as rows that a parser knows: columns under our names, the layout told where it is not named."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from alignment.config.data import DataConfig, ExampleKind, Template
from alignment.config.errors import ConfigError
from alignment.config.sources import Format, NamedSource, SourceConfig
from alignment.data import helpsteer, oasst
from alignment.data.columns import Columns, Renamed, Rows, own_columns, peeked
from alignment.data.detect import UnknownLayout, detect, known_by
from alignment.data.json_rows import Row
from alignment.data.read import read_each
from alignment.data.records import DataError, Source

Laid = tuple[Source, Row | DataError, Format]
TEXTS = (Format.native, Format.text)  # which data.template=none may read
SPLIT = re.compile(r"\.(?:train|eval)(?:\.|$)")  # behind what is `data` in a config: "ptx.data.train.mix.a"


def laid_out(
    source: SourceConfig, data: DataConfig, need: ExampleKind | None, key: str, tell: Callable[[str], object]
) -> Iterator[Laid]:
    """The rows of all files of a source, up to its limit, each with the layout that its parser is to read.

    Args:
        need: what the task takes of a row; None: that is not known yet, they are as demonstrations.
        key: of the source in the config, "data.train".
        tell: is told the layout of each file that names none.

    Raises:
        UserError: a file cannot be read, the layout cannot be told, or, behind its rows, none of them has a column that
            `data.columns` names.
    """
    paths, left = source.paths(), source.limit
    part = SPLIT.split(key)[0]
    named = source.columns if isinstance(source, NamedSource) else {}
    keys = {field: f"{key if field in named else part}.columns.{field}" for field in data.columns}
    place = key if isinstance(source, NamedSource) else part
    for number, path in enumerate(paths):
        columns = Columns(data.columns, keys, path)
        name = f"{key}.path" if len(paths) == 1 else f"{key}.path.{number}"
        for row in islice(_of_file(data, need, place, tell, name, columns), left):
            yield row
            left = None if left is None else left - 1
        columns.require()


def _of_file(
    data: DataConfig, need: ExampleKind | None, part: str, tell: Callable[[str], object], name: str, columns: Columns
) -> Iterator[Laid]:
    path = columns.path
    rows = columns.renamed(read_each(path, columns.columns.values()))
    format = data.format
    if format is Format.auto:
        first, rows = peeked(rows)
        try:
            format = detect(first, part, need)
        except UnknownLayout as error:
            deque(rows if columns.unseen else (), maxlen=0)  # a column that no row has is the likelier mistake
            columns.require()
            raise error if str(error).startswith(str(path)) else UnknownLayout(f"{name}: {error}") from error
        if first:  # an empty file has no layout, and is told elsewhere
            tell(f"{name}: read as {format.value} ({known_by(format, first)})")
        if data.template is Template.none and format not in TEXTS:
            rule = f"{SPLIT.split(part)[0]}.template=none goes with rows of prompts and replies as texts"
            raise ConfigError(f"{rule}, got rows of the layout {format.value} in {path!r}")
    return as_native(rows, format, need or ExampleKind.demonstrations)


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
        return [(source, Renamed(made, own_columns(row))) for made in helpsteer.native_rows(row, source, need)]
    except DataError as error:
        return [(source, error)]

"""Rows with our names for their fields, in place of those that the file has."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from alignment.config.columns import FIELDS
from alignment.config.errors import ConfigError
from alignment.data.json_rows import Row
from alignment.data.records import DataError, Source
from alignment.user_error import nearest

FIRST = 50  # rows that are looked at before any is used: what all of them lack is a mistake
MISSING = object()
Rows = Iterator[tuple[Source, Row | DataError]]


def with_columns(rows: Iterable[tuple[Source, Row | DataError]], columns: Mapping[str, str], key: str) -> Rows:
    """Each row with the fields of `columns` under our names, field -> the file's column, or a path of names within its
    objects, "answer.text". A field of ours whose column another one takes over is no longer there under its old name.

    Raises:
        ConfigError: the first rows all lack a column; names the key, what they have, and the nearest.
    """
    first, rows = peeked(rows)
    good = [row for _, row in first if not isinstance(row, DataError)]
    for field, column in columns.items():
        if good and all(_at(row, column) is MISSING for row in good):
            there = list(dict.fromkeys(name for row in good for name in row))
            has = f"{', '.join(there)}{nearest(column, there)}"
            raise ConfigError(f"{key}.{field}: no column {column!r} in {first[0][0].file}, which has {has}")
    return ((at, row if isinstance(row, DataError) else renamed(row, columns)) for at, row in rows)


def peeked(rows: Iterable[tuple[Source, Row | DataError]]) -> tuple[list[tuple[Source, Row | DataError]], Rows]:
    """The first rows, and all of them."""
    read = iter(rows)
    first = list(islice(read, FIRST))
    return first, chain(first, read)


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    moved = {column for column in columns.values() if column in FIELDS}
    found = {field: _at(row, column) for field, column in columns.items()}
    kept = {name: value for name, value in row.items() if name not in moved and name not in columns}
    return kept | {field: value for field, value in found.items() if value is not MISSING}


def _at(row: Any, column: str) -> Any:
    """The value of a column; of a name with points that is none, what it leads to within objects and lists."""
    if column in row:
        return row[column]
    value = row
    for name in column.split("."):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return MISSING
    return value

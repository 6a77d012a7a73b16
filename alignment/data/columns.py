"""Rows with our names for their fields, in place of those that the file has."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from alignment.config.columns import FIELDS
from alignment.config.errors import ConfigError
from alignment.data.json_rows import Row
from alignment.data.records import DataError, Source
from alignment.user_error import nearest

FIRST = 50  # rows by which a layout is told
MISSING = object()
Rows = Iterator[tuple[Source, Row | DataError]]


class Renamed(dict[str, Any]):
    """A row under our names, which still knows the file's."""

    def __init__(self, row: Row, own: Row) -> None:
        super().__init__(row)
        self.own = own


def own_columns(row: Row) -> Row:
    """The row as its file has it, which `data.columns` reads under other names."""
    return row.own if isinstance(row, Renamed) else row


class Columns:
    """The columns that a config names, looked for in all rows of a file that are read."""

    def __init__(self, columns: Mapping[str, str], keys: Mapping[str, str], path: str) -> None:
        """keys: of each field, where the config names its column."""
        self.columns = columns
        self.keys = keys
        self.path = path
        self.unseen = dict(columns)
        self.there: dict[str, None] = {}
        self.rows = 0

    def renamed(self, rows: Iterable[tuple[Source, Row | DataError]]) -> Rows:
        """Each row with the fields of `columns` under our names, field -> the file's column, or a path of names within
        its objects, "answer.text". A field of ours whose column another one takes over is no longer there under its old
        name."""
        if not self.columns:
            yield from rows
            return
        for at, row in rows:
            if isinstance(row, DataError):
                yield at, row
                continue
            if self.unseen:
                self.rows += 1
                self.there.update(dict.fromkeys(row))
                self.unseen = {field: name for field, name in self.unseen.items() if _at(row, name) is MISSING}
            yield at, Renamed(renamed(row, self.columns), row)

    def require(self) -> None:
        """To be asked once the rows are read.

        Raises:
            ConfigError: all of them lack a column; names the key, what they have, and the nearest.
        """
        if not self.rows or not self.unseen:
            return
        field, column = next(iter(self.unseen.items()))
        has = f"{', '.join(self.there)}{nearest(column, self.there)}"
        read = "the one row" if self.rows == 1 else f"any of the {self.rows} rows"
        have = "has" if self.rows == 1 else "have"
        raise ConfigError(f"{self.keys[field]}: no column {column!r} in {read} read of {self.path}, which {have} {has}")


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

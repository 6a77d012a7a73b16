"""Tables in text, .csv and .tsv, to rows. A cell is a text, and an empty one is an absent field."""

import ast
import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from alignment.config.columns import FIELDS
from alignment.config.errors import UserError
from alignment.data.json_rows import Row
from alignment.data.records import Cell, DataError, Source

SEPARATORS = {".csv": ",;\t", ".tsv": "\t"}
TURNS = re.compile(r"""\s*\[?\s*\{\s*["'](role|content|from|value)["']\s*:""")  # how a turn begins, or a list of them
LONGEST_NAME = 80  # letters
LARGEST = 2**31 - 1  # letters of a cell; Python's own limit is 131,072, which is shorter than some dialogues


def csv_rows(
    path: Path, lines: Iterable[tuple[Source, str]], kind: str, columns: Collection[str] = ()
) -> Iterator[tuple[Source, Row | DataError]]:
    """The rows below a line of names, each with the line that it begins in; a row that cannot be read is its error.

    Args:
        lines: with their ends, which quoted cells may hold.
        kind: .csv, whose cells a comma parts, or a semicolon or a tab where the line of names has no comma; or .tsv.
        columns: names that the config gives; a line with one of them is one of names.

    Raises:
        DataError: quotes are left open, or stand where none may.
        UserError: the names are missing or given twice, or a row stands in their place.
    """
    csv.field_size_limit(LARGEST)
    read = iter(lines)
    first = next(((source, line) for source, line in read if line.strip()), None)
    if first is None:
        return
    begin, head = first
    separator = next((each for each in SEPARATORS[kind] if each in head), SEPARATORS[kind][0])
    texts = _Texts(head, read)
    if kind == ".tsv" and separator not in head and "," in head:
        raise UserError(f"{path}: the cells of a .tsv are parted by tabs, got {head.strip()!r:.60}; name it .csv")
    records = csv.reader(texts, delimiter=separator, strict=True)
    names = _next(records, path, begin.line)
    _require_names(path, names or [], columns, separator)
    while True:
        line = begin.line + records.line_num
        cells = _next(records, path, line)
        if cells is None:
            return
        if cells:  # a blank line has none
            source = Source(str(path), line)
            yield source, _row(source, names or [], cells)


class _Texts:
    """The lines for a reader, the first one once more."""

    def __init__(self, head: str, rest: Iterator[tuple[Source, str]]) -> None:
        self.head: str | None = head
        self.rest = rest

    def __iter__(self) -> "_Texts":
        return self

    def __next__(self) -> str:
        if self.head is None:
            return next(self.rest)[1]
        head, self.head = self.head, None
        return head


def _next(records: Iterator[list[str]], path: Path, line: int) -> list[str] | None:
    try:
        return next(records, None)
    except csv.Error as error:
        way = "a quote within a quoted cell is written twice, and a line ends with a line feed"
        what = f"a record begins here that cannot be read: {str(error).partition(' - ')[0]} ({way})"
        raise DataError(Source(str(path), line), what) from error


def _require_names(path: Path, names: list[str], columns: Collection[str], separator: str) -> None:
    """A column without a name, as pandas gives the numbers of its rows, is no field."""
    known = {*FIELDS, *columns}
    row = None if any(name.strip() in known for name in names) else next(filter(_is_of_a_row, names), None)
    if row is not None:
        way = f"add a header line such as {separator.join(('prompt', 'chosen', 'rejected'))}"
        what = "the first line looks like data, not like column names"
        way += " (where it does name them, data.columns.prompt=NAME says so)"
        raise UserError(f"{path}: {what}, got {row!r:.60}: {way}")
    twice = [name for name, count in Counter(name.strip() for name in names).items() if name and count > 1]
    if twice:
        raise UserError(f"{path}: the columns of its first line must have different names, got {twice[0]!r} twice")
    if not any(name.strip() for name in names):
        raise UserError(f"{path}: its first line must name the columns, got {names!r:.60}")


def _is_of_a_row(cell: str) -> bool:
    """Whether it is a sentence, a dialogue or longer than any name."""
    text = cell.strip()
    is_sentence = len(text.split()) > 1 and text.endswith((".", "!", "?", "…"))
    return is_sentence or "\n" in text or len(text) > LONGEST_NAME or TURNS.match(text) is not None


def _row(source: Source, names: list[str], cells: list[str]) -> Row | DataError:
    if len(cells) != len(names):
        what = f"a record of {len(cells)} cells, where the first line names {len(names)} columns"
        return DataError(source, f"{what} (a cell that holds the separator stands in quotes)")
    row = {}
    for name, text in zip((name.strip() for name in names), cells, strict=True):
        if not name or not text:
            continue
        try:
            row[name] = _value(text)
        except ValueError:
            what = f"field `{name}` begins as turns do and is neither JSON nor a list as Python writes it"
            return DataError(source, f"{what}, got {text!r:.60}")
    return row


def _value(text: str) -> Any:
    """Turns, as JSON or as Python writes them, which is what tables of lists are saved as; else the text."""
    if not TURNS.match(text):
        return Cell(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("no literal") from error

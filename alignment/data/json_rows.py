"""JSON files to rows, whatever their shape.

one object a line;   one list of objects;   objects over many lines;
an object with one list of objects in it, {"data": [...]};   columns, {"prompt": [...], "completion": [...]}
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from alignment.config.errors import UserError
from alignment.data.records import DataError, Source

Row = dict[str, Any]
Lines = Iterable[tuple[Source, str]]
SHOWN = 30  # letters of what is no JSON
DEPTH = 100  # what reads a row walks it, and Python ends a walk at some hundreds
ROW_FIELDS = {"prompt", "completion", "chosen", "rejected", "messages", "conversations", "context"}


class _Twice(dict[str, Any]):
    """An object that gives a key twice."""

    key: str


def json_rows(lines: Lines) -> Iterator[tuple[Source, Row | DataError]]:
    """The rows of a file's lines and where each stands; a row that cannot be read is its error.

    Raises:
        DataError: the file is no JSON, whichever shape.
        UserError: it is JSON of another shape.
    """
    full = ((source, line) for source, line in lines if line.strip())
    first, second = next(full, None), next(full, None)
    if first is None:
        return
    rest = chain([first] if second is None else [first, second], full)
    if second is not None and _is_object(first[1]):
        yield from map(_line, rest)
        return
    kept = list(rest)
    values = _values(kept)
    if isinstance(values, DataError):
        if not any(_is_object(line) for _, line in kept[1:]):
            raise values
        yield from map(_line, kept)
    elif len(values) == 1:
        yield from _only(*values[0])
    else:
        yield from (_checked(source, value) for source, value in values)


def _line(at: tuple[Source, str]) -> tuple[Source, Row | DataError]:
    source, line = at
    value = _loaded(source, line)
    return (source, value) if isinstance(value, DataError) else _checked(source, value)


def _is_object(line: str) -> bool:
    return line.lstrip("\ufeff \t").startswith("{") and isinstance(_loaded(Source("", 1), line), dict)


def _loaded(source: Source, text: str) -> Any:
    """The value of a text, or its DataError."""
    try:
        text = text.rstrip("\r\n")  # or a line that is cut off would end in the next one
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return DataError(source, f"malformed JSON: {error.msg} (column {error.colno}){_looks_like(text)}")
    except RecursionError:
        return DataError(source, f"nested deeper than {DEPTH} levels")
    except ValueError as error:  # a number of thousands of digits
        return DataError(source, f"JSON that cannot be read: {str(error).partition(';')[0]}")


def _looks_like(text: str) -> str:
    """What a text that is no JSON is by its beginning, as far as that is plain."""
    begin = text.lstrip("\ufeff \t\n\r")[:SHOWN]
    if begin.lower().startswith(("<!doctype", "<html")):
        return f": it is a web page, which came in the place of the file, {begin!r}"
    if begin.startswith(("{'", "[{'")):
        return ": its texts stand in single quotes, as Python prints them; json.dumps writes JSON"
    return f", got {begin!r}" if begin and not begin.startswith(("{", "[")) else ""


def _values(lines: list[tuple[Source, str]]) -> list[tuple[Source, Any]] | DataError:
    """The values of a text one behind the other, each with the line it begins in."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    starts, text = [0], "".join(line if line.endswith("\n") else f"{line}\n" for _, line in lines)
    for _, line in lines:
        starts.append(starts[-1] + len(line) + (not line.endswith("\n")))
    values: list[tuple[Source, Any]] = []
    number, at = 0, 0
    while True:
        at += _blank(text, at)
        if at >= len(text):
            return values
        while starts[number + 1] <= at:
            number += 1
        source = lines[number][0]
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            where = lines[min(error.lineno, len(lines)) - 1][0]
            what = f"malformed JSON: {error.msg} (column {error.colno}){_looks_like(text[at:])}"
            return DataError(where, what)
        except RecursionError:
            return DataError(source, f"nested deeper than {DEPTH} levels")
        except ValueError as error:
            return DataError(source, f"JSON that cannot be read: {str(error).partition(';')[0]}")
        values.append((source, value))


def _blank(text: str, at: int) -> int:
    """How many blanks a text has from `at`."""
    end = at
    while end < len(text) and text[end].isspace():
        end += 1
    return end - at


def _only(source: Source, value: Any) -> Iterator[tuple[Source, Row | DataError]]:
    """The rows of the one value of a file."""
    if isinstance(value, list):
        yield from _elements(source, value)
        return
    if not isinstance(value, dict):
        raise DataError(source, f"a row must be a JSON object, got {type(value).__name__}")
    lists = {key: each for key, each in value.items() if isinstance(each, list)}
    tables = [key for key, each in lists.items() if each and all(isinstance(row, dict) for row in each)]
    if len(tables) == 1 and tables[0] not in ROW_FIELDS and not ROW_FIELDS & set(value):
        yield from _elements(source, value[tables[0]])
    elif lists and len(lists) == len(value) and len(tables) < len(lists) and not ROW_FIELDS & set(tables):
        if len({len(column) for column in lists.values()}) != 1:
            raise UserError(f"{source.file}: its columns must be of one length, got {_lengths(lists)}")
        rows = (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))
        yield from _elements(source, list(rows))
    elif not ROW_FIELDS & set(value) and len(tables) > 1:
        raise UserError(f"{source.file}: holds several lists of rows, save one of them alone: {', '.join(tables)}")
    else:
        yield _checked(source, value)


def _lengths(lists: dict[str, list[Any]]) -> str:
    return ", ".join(f"{key}: {len(column)}" for key, column in lists.items())


def _elements(source: Source, values: list[Any]) -> Iterator[tuple[Source, Row | DataError]]:
    for number, value in enumerate(values, start=1):
        yield _checked(Source(source.file, number), value)


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    twice = _Twice(row)
    keys = [key for key, _ in pairs]
    twice.key = next(key for key in keys if keys.count(key) > 1)
    return twice


def _checked(source: Source, value: Any) -> tuple[Source, Row | DataError]:
    if not isinstance(value, dict):
        return source, DataError(source, f"a row must be a JSON object, got {type(value).__name__}")
    level: list[Any] = [value]
    depth = 0
    while level:
        if depth == DEPTH:
            return source, DataError(source, f"nested deeper than {DEPTH} levels")
        twice = next((each for each in level if isinstance(each, _Twice)), None)
        if twice is not None:
            return source, DataError(source, f"field `{twice.key}` is given twice")
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level, depth = [each for values in inner for each in values if isinstance(each, dict | list)], depth + 1
    return source, value

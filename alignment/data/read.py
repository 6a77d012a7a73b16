"""Files to rows, each with the place it came from."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from alignment.config.errors import UserError
from alignment.config.folders import require_fetched
from alignment.data.json_rows import Row, json_rows
from alignment.data.records import DataError, Source

GZIP, UTF_16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")  # with which files of these begin


def read_rows(path: str | Path) -> Iterator[tuple[Source, Row]]:
    """As `read_each`, but that the error of a row is raised when it is reached."""
    return _raising(read_each(path))


def _raising(rows: Iterable[tuple[Source, Row | DataError]]) -> Iterator[tuple[Source, Row]]:
    for source, row in rows:
        if isinstance(row, DataError):
            raise row
        yield source, row


def read_each(path: str | Path) -> Iterator[tuple[Source, Row | DataError]]:
    """The rows of a file, in order and with their places; in place of a row that cannot be read, why.

    Args:
        path: .jsonl or .json, in any of the shapes of `json_rows`, either of them with .gz; .parquet; or a folder
            written by `Dataset.save_to_disk`. Blank lines are passed over, and counted.

    Raises:
        UserError: there is no such file, or it is of no such kind; raised before the first row.
        DataError: the file is no JSON, or not UTF-8, or the gzip stream is broken; raised when it is reached.
    """
    path = Path(path)
    if path.is_dir():
        from alignment.data.tables import saved  # not above: it imports datasets, which is slow

        return _table(path, saved(path))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    require_fetched(path, str(path))
    match Path(path.name.removesuffix(".gz")).suffix:
        case ".jsonl" | ".json":
            return json_rows(_lines(path))
        case ".parquet" if path.suffix == ".parquet":
            from alignment.data.tables import parquet

            return _table(path, parquet(path))
    raise UserError(f"{path}: a data file must end in .jsonl, .json, .jsonl.gz, .json.gz or .parquet")


def _lines(path: Path) -> Iterator[tuple[Source, str]]:
    with path.open("rb") as file:
        begin = file.read(max(map(len, (GZIP, *UTF_16))))
    opener = gzip.open if path.suffix == ".gz" or begin.startswith(GZIP) else open  # whatever it is called
    if begin.startswith(UTF_16):
        raise DataError(Source(str(path), 1), "not UTF-8: it begins as a file in UTF-16 does, save it as UTF-8")
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield Source(str(path), number), line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(Source(str(path), number), f"not UTF-8: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(Source(str(path), number + 1), f"broken gzip data: {error}") from error


def _table(path: Path, rows: Iterable[Any]) -> Iterator[tuple[Source, Row]]:
    for number, row in enumerate(rows, start=1):
        yield Source(str(path), number), {key: _own(value) for key, value in row.items()}


def _own(value: Any) -> Any:
    """What a field has itself: in a table all turns, calls and schemas have all fields that one of any row has, as
    nulls, which a template would write."""
    if isinstance(value, dict):
        return {key: _own(each) for key, each in value.items() if each is not None}
    if isinstance(value, Decimal):  # SQL's numbers, which JSON has not
        return float(value)
    return [_own(each) for each in value] if isinstance(value, list) else value

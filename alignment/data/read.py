"""Files to rows, each with the place it came from."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset, load_from_disk

from alignment.config.parts import UserError
from alignment.data.records import DataError, Source

Row = dict[str, Any]


def read_rows(path: str | Path) -> Iterator[tuple[Source, Row]]:
    """The rows of a file, in order and with their places.

    Args:
        path: .jsonl (one object per line), .json (the same, or one list of objects), either of them with .gz;
            .parquet; or a folder written by `Dataset.save_to_disk`. Blank lines are passed over, and counted.

    Raises:
        UserError: there is no such file, or it is of no such kind; raised before the first row.
        DataError: a row is not a JSON object, or not UTF-8, or the gzip stream is broken; raised when it is reached.
    """
    path = Path(path)
    if path.is_dir():
        return _table(path, _saved(path))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    match Path(path.name.removesuffix(".gz")).suffix:
        case ".jsonl":
            return _objects(_lines(path))
        case ".json":
            return _elements(path) if _is_list(path) else _objects(_lines(path))
        case ".parquet" if path.suffix == ".parquet":
            return _table(path, load_dataset("parquet", data_files=str(path), split="train", streaming=True))
    raise UserError(f"{path}: a data file must end in .jsonl, .json, .jsonl.gz, .json.gz or .parquet")


def _lines(path: Path) -> Iterator[tuple[Source, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield Source(str(path), number), line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(Source(str(path), number), f"not UTF-8: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(Source(str(path), number + 1), f"broken gzip data: {error}") from error


def _is_list(path: Path) -> bool:
    return next((line.lstrip().startswith("[") for _, line in _lines(path) if line.strip()), False)


def _objects(lines: Iterable[tuple[Source, str]]) -> Iterator[tuple[Source, Row]]:
    for source, line in lines:
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(source, f"malformed JSON: {error.msg} (column {error.colno})") from error
            yield source, _object(source, value)


def _elements(path: Path) -> Iterator[tuple[Source, Row]]:
    text = "".join(line for _, line in _lines(path))
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        where = Source(str(path), error.lineno)
        raise DataError(where, f"malformed JSON: {error.msg} (column {error.colno})") from error
    for number, value in enumerate(values, start=1):
        source = Source(str(path), number)
        yield source, _object(source, value)


def _object(source: Source, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(source, f"a row must be a JSON object, got {type(value).__name__}")
    return value


def _saved(path: Path) -> Iterable[Any]:
    try:
        saved = load_from_disk(str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: a data folder must be one that `Dataset.save_to_disk` wrote") from error
    if isinstance(saved, DatasetDict):
        raise UserError(f"{path}: holds several splits, name the folder of one of them: {', '.join(saved)}")
    return saved


def _table(path: Path, rows: Iterable[Any]) -> Iterator[tuple[Source, Row]]:
    for number, row in enumerate(rows, start=1):
        yield Source(str(path), number), row

"""Rows that a program has in memory, as a file of the run's own folder.

The file is named by what it holds, so that the same rows are the same run: it goes on, or is finished already, and
other rows in its folder are told from them.
"""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from alignment.config.errors import ConfigError, UserError
from alignment.data.read import without_nulls
from alignment.data.records import DataError
from alignment.runs.claim import make_folder

WAYS = "a path, or rows: dicts as in a JSON Lines file, in a list, a datasets.Dataset or whatever else gives one by one"


def is_rows(value: Any) -> bool:
    """Whether it is rows, and not a path, a list of paths, or the keys of the config's part `data`."""
    if isinstance(value, list | tuple) and value and all(isinstance(each, str | Path) for each in value):
        return False
    return isinstance(value, Iterable) and not isinstance(value, str | Mapping)


def write_rows(rows: Iterable[Any], folder: Path, name: str) -> Path:
    """The file of these rows in `folder`.

    Raises:
        ConfigError: one is no row, or there is none; names the argument `name` and the row.
    """
    make_folder(folder)
    beside, content, number = folder / f"{name}.{os.getpid()}.partial", xxhash.xxh3_128(), 0
    is_table = type(rows).__module__.partition(".")[0] == "datasets"
    try:
        with beside.open("wb") as file:
            for number, row in enumerate(rows, start=1):
                line = _line(row, f"{name}: row {number}", is_table=is_table)
                content.update(line)
                file.write(line)
        if number == 0:
            raise ConfigError(f"{name} must have at least one row, got none")
        path = folder / f"{content.hexdigest()[:16]}.jsonl"
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def kind_of(value: Any) -> str:
    """The kind of a value, with its article."""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def as_given(error: UserError, files: Mapping[str, str]) -> UserError:
    """The mistake in a row by its place in the argument; the file of it, of `files` by their arguments, goes away."""
    if isinstance(error, DataError):
        for name, file in files.items():
            if error.source.file == file:
                return UserError(f"{name}: row {error.source.line}: {error.what}")
    return error


def _line(row: Any, where: str, *, is_table: bool) -> bytes:
    if not isinstance(row, Mapping):
        hint = "; a DataFrame's are frame.to_dict('records')" if isinstance(row, str) else ""
        raise ConfigError(f"{where} must be a dict, got {kind_of(row)}{hint}")
    fields = {key: without_nulls(value) for key, value in row.items()} if is_table else dict(row)
    try:
        return json.dumps(fields, ensure_ascii=False, default=_plain).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} must hold what JSON has, texts, numbers, lists and dicts: {error}") from error


def _plain(value: Any) -> Any:
    """What JSON lacks, as a table's reader gives it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"got {kind_of(value)}")

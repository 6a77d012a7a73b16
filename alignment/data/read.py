"""Files to rows, each with the place it came from."""

from collections.abc import Collection, Iterable, Iterator
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from alignment.config.errors import UserError
from alignment.config.files import is_pattern, matched
from alignment.config.folders import require_fetched
from alignment.config.hub import Kind, located, pinned_name
from alignment.data.csv_rows import SEPARATORS, csv_rows
from alignment.data.json_rows import Row, json_rows
from alignment.data.records import DataError, Source
from alignment.data.streams import COMPRESSED, lines

TEXTS, TABLES = (".jsonl", ".json", *SEPARATORS), (".parquet", ".arrow")
KINDS = f"a data file must end in {', '.join(TEXTS)}, any of them with .gz or .zst behind it, {' or '.join(TABLES)}"
SHEETS = (".xlsx", ".xls", ".ods")
SAVED = ("state.json", "dataset_dict.json", "dataset_info.json")  # what `datasets` leaves in a folder of its own


def read_rows(path: str | Path) -> Iterator[tuple[Source, Row]]:
    """As `read_each`, but that the error of a row is raised when it is reached."""
    return _raising(read_each(path))


def _raising(rows: Iterable[tuple[Source, Row | DataError]]) -> Iterator[tuple[Source, Row]]:
    for source, row in rows:
        if isinstance(row, DataError):
            raise row
        yield source, row


def read_each(path: str | Path, columns: Collection[str] = ()) -> Iterator[tuple[Source, Row | DataError]]:
    """The rows of a file, in order and with their places; in place of a row that cannot be read, why.

    Args:
        path: a file of KINDS, JSON in any of the shapes of `json_rows`; a folder written by `Dataset.save_to_disk`, or
            one of such files, which are read by their names' order; or a pattern that files match, likewise. Blank
            lines are passed over, and counted. Or a split on the hub, by its pinned name, whose places are rows of it.
        columns: names of the file's that the config gives, by which a CSV's line of names is known.

    Raises:
        UserError: there is no such file, or it is of no such kind; raised before the first row.
        DataError: the file is no JSON or CSV, or not UTF-8, or a compressed stream is broken; raised when it is
            reached.
    """
    on_hub = pinned_name(path, Kind.data)
    if on_hub is not None:
        return _split(on_hub.rows(), files_of(path), columns)
    return chain.from_iterable([_rows(file, columns) for file in files_of(path)])


def files_of(path: str | Path) -> list[Path]:
    """What `read_each` reads, in order: files, and folders of `Dataset.save_to_disk`.

    Raises:
        UserError: there is none.
    """
    if pinned_name(path, Kind.data) is not None:
        return sorted(located(path, Kind.data).iterdir())
    files = [file for each in matched(str(path)) for file in _files(Path(each), whole=not is_pattern(str(path)))]
    if not files:
        raise UserError(f"{path}: no file matches")
    return files


def _split(name: str, files: list[Path], columns: Collection[str]) -> Iterator[tuple[Source, Row | DataError]]:
    for number, (_, row) in enumerate(chain.from_iterable(_rows(file, columns) for file in files), start=1):
        source = Source(name, number)
        yield source, DataError(source, row.what) if isinstance(row, DataError) else row


def _files(path: Path, *, whole: bool) -> list[Path]:
    """What is read of a path. A folder of data files is asked for by itself: one that a pattern matches is passed
    over, as by a shell's own commands."""
    if not path.is_dir() or any((path / name).exists() for name in SAVED):
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and _kind(file)) if whole else []
    if whole and not files:
        kinds = f"{', '.join((*TEXTS, *TABLES))}"
        raise UserError(
            f"{path}: a data folder must be one that `Dataset.save_to_disk` wrote, or hold files of {kinds}"
        )
    return files


def _kind(path: Path) -> str:
    """Its ending of KINDS, without that of a compression; "" where it has none."""
    inner = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    kinds = TEXTS if path.suffix in COMPRESSED else (*TEXTS, *TABLES)
    return inner if inner in kinds and not path.name.startswith(".") else ""


def _rows(path: Path, columns: Collection[str] = ()) -> Iterator[tuple[Source, Row | DataError]]:
    if path.is_dir():
        from alignment.data.tables import saved  # not above: it imports datasets, which is slow

        return _table(path, saved(path))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    require_fetched(path, str(path))
    match kind := _kind(path):
        case ".jsonl" | ".json":
            return json_rows(lines(path))
        case ".csv" | ".tsv":
            return csv_rows(path, lines(path), kind, columns)
        case ".parquet":
            from alignment.data.tables import parquet

            return _table(path, parquet(path))
        case ".arrow":
            from alignment.data.tables import arrow

            return _table(path, arrow(path))
    raise UserError(f"{path}: {KINDS}{'; a sheet is saved as CSV in UTF-8' if path.suffix in SHEETS else ''}")


def _table(path: Path, rows: Iterable[Any]) -> Iterator[tuple[Source, Row]]:
    for number, row in enumerate(rows, start=1):
        yield Source(str(path), number), {key: without_nulls(value) for key, value in row.items()}


def without_nulls(value: Any) -> Any:
    """What a field has itself: in a table all turns, calls and schemas have all fields that one of any row has, as
    nulls, which a template would write."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, Decimal):  # SQL's numbers, which JSON has not
        return float(value)
    return [without_nulls(each) for each in value] if isinstance(value, list) else value

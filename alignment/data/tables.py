"""What the library datasets reads: parquet files, folders that it has saved, and which files a split has."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from datasets.data_files import EmptyDatasetError
from pyarrow import ArrowException, memory_map
from pyarrow.ipc import open_file, open_stream
from pyarrow.parquet import ParquetFile

from alignment.config.errors import UserError
from alignment.config.folders import require_fetched

PARQUET, ARROW = b"PAR1", b"ARROW1"


def parquet(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:  # asked first, for the library tells of it on a line of its own
        begin = file.read(len(PARQUET))
        file.seek(max(0, path.stat().st_size - len(PARQUET)))
        if (begin, file.read()) != (PARQUET, PARQUET):
            raise UserError(f"{path}: it is no parquet file, or cut or damaged (it must begin and end with PAR1)")
    try:
        with ParquetFile(path) as whole:  # likewise
            names, count = whole.schema_arrow.names, whole.metadata.num_rows
        _require_different(path, names)
        if count:
            yield from load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    except UserError:
        raise
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: it is no parquet file, or cut or damaged ({str(error).partition('.')[0]})") from error
    except ValueError as error:  # of a whole file, with a column of a kind that the library has not: a map
        way = "leave the column out, or have a list or a struct in its place"
        raise UserError(f"{path}: a column cannot be read ({str(error).rstrip('.')}); {way}") from error


def arrow(path: Path) -> Iterator[Any]:
    """The rows of a file in Arrow's form for files, or in that for streams, in which `datasets` keeps its own."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(ARROW))
        with memory_map(str(path)) as mapped:
            if begin == ARROW:
                whole = open_file(mapped)
                batches = (whole.get_batch(number) for number in range(whole.num_record_batches))
            else:
                batches = iter(open_stream(mapped))
            for batch in batches:
                _require_different(path, batch.schema.names)
                yield from batch.to_pylist()
    except UserError:
        raise
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: it is no arrow file, or cut or damaged ({str(error).partition('.')[0]})") from error


def _require_different(path: Path, names: list[str]) -> None:
    """Raises:
    UserError: two columns have one name, of which a row has but one.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path}: the columns must have different names, got {name!r} twice")


def saved(path: Path) -> Iterable[Any]:
    for file in path.iterdir():
        if file.is_file():
            require_fetched(file, str(file))
    try:
        table = load_from_disk(str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: a data folder must be one that `Dataset.save_to_disk` wrote") from error
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: its files are cut or damaged ({str(error).partition('.')[0]})") from error
    if isinstance(table, DatasetDict):
        raise UserError(f"{path}: holds several splits, name the folder of one of them: {', '.join(table)}")
    return table


def splits_in(folder: Path, config: str | None) -> dict[str, list[str]]:
    """Each split of a data set and its files, in order, as paths in the folder; asked of the names of the files and of
    what README.md says of them, as on the hub. None of the files of data is opened.

    Raises:
        UserError: it has no such configuration, needs one to be named, or holds no data; begins behind the set's name.
    """
    try:
        found = load_dataset_builder(str(folder), name=config).config.data_files
    except (EmptyDatasetError, FileNotFoundError) as error:
        raise UserError(" holds no files of rows") from error
    except ValueError as error:  # of configurations
        names = re.findall(r"'([^']+)'", str(error).rpartition("vailable")[2].partition("\n")[0])
        rule = f" has configurations ({', '.join(names)}), one of which must be named, as in"
        raise UserError(f"{rule} org/name/{(names or ['CONFIG'])[0]}:train") from error
    root = folder.resolve()
    return {str(split): [Path(file).relative_to(root).as_posix() for file in files] for split, files in found.items()}

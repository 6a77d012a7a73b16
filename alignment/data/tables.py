"""Tables that the library datasets reads: parquet files, and folders that it has saved."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset, load_from_disk
from pyarrow import ArrowException, memory_map
from pyarrow.ipc import open_file, open_stream

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
        yield from load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: it is no parquet file, or cut or damaged ({str(error).partition('.')[0]})") from error


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
                yield from batch.to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: it is no arrow file, or cut or damaged ({str(error).partition('.')[0]})") from error


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

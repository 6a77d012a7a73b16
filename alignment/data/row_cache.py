"""Rows in tokens, kept as an Arrow file that processes map into memory: none of them holds a copy.

Such a file is named by everything that shapes it, so that whatever is another is another file, and one with its name
need only be whole. It lies in the user's cache, beside what is known of its rows together. The first process that asks
makes it, and others on its machine wait for that one. What is pickled in it is read back by the user who wrote it.
"""

import json
import pickle
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import pyarrow as pa
import xxhash

from alignment.config.user_cache import user_cache
from alignment.data.held_out import prompt_hash
from alignment.data.numbers import NUMBERS, numbers
from alignment.data.records import Record
from alignment.data.row_lock import alone
from alignment.data.row_room import held, make_room, note_use
from alignment.data.sequences import gathered
from alignment.data.tokenize import Example
from alignment.runs.contents import digest, hashed
from alignment.runs.written import whole_file
from alignment.terminal import say_once

Item = TypeVar("Item")
SCHEMA = pa.schema(
    {
        "ids": pa.large_list(pa.int32()),  # of the prompt, and of each completion behind it
        "lengths": pa.large_list(pa.int32()),  # of each of them
        "learned": pa.large_binary(),  # of the completions' tokens, a byte each; empty where all are
        "example": pa.large_binary(),  # what else it has
        "record": pa.large_binary(),
        **{name: pa.from_numpy_dtype(dtype) for name, (_, dtype) in NUMBERS.items()},
        "prompt_hash": pa.uint64(),  # of the record, without a seed
    }
)
MARK = 16  # bytes of the hash before what is known of rows together
FLAGS = ("margin", "source", "finished", "tags", "labels", "ends", "weight")


class UnwritableError(Exception):
    """The cache's folder is full, or not to be written, or they cannot be read."""


def cache_folder() -> Path:
    return user_cache("rows")


def place_of(key: object) -> Path:
    """Where rows lie that are of this, in the columns that they have: anything that is JSON, what is not by its
    text."""
    text = json.dumps([str(SCHEMA), key], sort_keys=True, default=str)
    return cache_folder() / f"{xxhash.xxh3_128_hexdigest(text.encode(errors='surrogatepass'))}.arrow"


def as_table(records: Sequence[Record], examples: Sequence[Example]) -> pa.RecordBatch:
    ids = [(example.prompt_ids, *example.completion_ids) for example in examples]
    columns: dict[str, Any] = {
        "ids": [np.concatenate(each) for each in ids],
        "lengths": [[len(part) for part in each] for each in ids],
        "learned": [b"" if each.learned is None else np.concatenate(each.learned).tobytes() for each in examples],
        "example": [pickle.dumps(tuple(getattr(each, name) for name in FLAGS)) for each in examples],
        "record": [pickle.dumps(record) for record in records],
        **{name: numbers(examples, name) for name in NUMBERS},
        "prompt_hash": [prompt_hash(record) for record in records],
    }
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


@dataclass(frozen=True, slots=True)
class Mapped(Sequence[Item]):
    """Rows of a table, each made as it is asked for; a slice is a list."""

    parts: "tuple[Part, ...]"
    ends: tuple[int, ...]
    make: "Callable[[Part, int], Item]"
    file: IO[bytes]  # open, so that nobody makes room of it

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        row = range(len(self))[index]
        number = bisect_right(self.ends, row)
        return self.make(self.parts[number], row - (self.ends[number - 1] if number else 0))

    def __iter__(self) -> Iterator[Item]:
        return (self.make(part, row) for part in self.parts for row in range(part.rows))

    def column(self, name: str, at: np.ndarray | None = None) -> np.ndarray:
        def of_part(number: int, some: np.ndarray | None) -> np.ndarray:
            values: np.ndarray = self.parts[number].batch.column(name).to_numpy()
            return values if some is None else values[some]

        return gathered([part.rows for part in self.parts], of_part, at)


class Part:
    """A batch of a table's rows, as views of what is mapped."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self.rows: int = batch.num_rows
        self.views: dict[str, tuple[list[int], Any]] = {}

    def cell(self, name: str, row: int) -> Any:
        """An array of integers, or bytes."""
        if name not in self.views:
            column = self.batch.column(name)
            is_list = pa.types.is_large_list(column.type)
            ends = column.offsets if is_list else pa.array(np.frombuffer(column.buffers()[1], np.int64))
            data = column.values.to_numpy() if is_list else memoryview(column.buffers()[2] or b"")
            self.views[name] = (ends.to_numpy(), data)
        ends, data = self.views[name]
        return data[ends[row] : ends[row + 1]]


def example_of(part: Part, row: int) -> Example:
    ends = list(accumulate(part.cell("lengths", row).tolist()))
    ids, learned = part.cell("ids", row), np.frombuffer(part.cell("learned", row), dtype=bool)
    completions = list(pairwise(ends))
    return Example(
        prompt_ids=ids[: ends[0]],
        completion_ids=tuple(ids[begin:end] for begin, end in completions),
        learned=tuple(learned[begin - ends[0] : end - ends[0]] for begin, end in completions) if len(learned) else None,
        **dict(zip(FLAGS, pickle.loads(part.cell("example", row)), strict=True)),
    )


def record_of(part: Part, row: int) -> Record:
    record: Record = pickle.loads(part.cell("record", row))
    return record


Rows = tuple[Sequence[Record], Sequence[Example], Any]
"""The rows, and what is known of them together."""


def kept_rows(place: Path, batches: Iterator[pa.RecordBatch], known: Callable[[], Any]) -> Rows:
    """The rows that lie there; where there are none, or no whole ones, they are made of the batches, and `known`, asked
    behind the last one, is what is known of them together.

    Raises:
        UnwritableError: they cannot be kept.
    """
    try:
        found = _mapped(place)
        if found is None:
            with alone(place):
                found = _mapped(place)
                if found is None:
                    _write(place, batches, known)
                    found = _mapped(place)
                    make_room(place)
    except OSError as error:
        raise UnwritableError(str(error)) from error
    if found is None:
        raise UnwritableError("they are gone again")
    return found


def _write(place: Path, batches: Iterator[pa.RecordBatch], known: Callable[[], Any]) -> None:
    aside = _known_of(place)
    aside.unlink(missing_ok=True)
    with whole_file(place) as beside:
        with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, SCHEMA) as table:
            for batch in batches:
                table.write_batch(batch)
        content = pickle.dumps((hashed(beside), known()))
    try:
        with whole_file(aside) as beside:
            beside.write_bytes(xxhash.xxh3_128_digest(content) + content)
    except OSError:
        place.unlink(missing_ok=True)  # rows of which nothing is known would be called damaged
        raise


def _known_of(place: Path) -> Path:
    return place.with_suffix(".known")


def _mapped(place: Path) -> Rows | None:
    """None where there are none; and, which is said, where they are not whole."""
    if not place.exists() and not _known_of(place).exists():
        return None
    try:
        file = held(place)
        written = _known_of(place).read_bytes()
        mark, content = written[:MARK], written[MARK:]
        if xxhash.xxh3_128_digest(content) != mark:
            raise ValueError("what is known of them has changed")
        found, known = pickle.loads(content)
        if digest(place) != found:
            raise ValueError("the contents have changed")
        table = pa.ipc.open_file(pa.memory_map(str(place)))
        parts = tuple(Part(table.get_batch(number)) for number in range(table.num_record_batches))
    except (OSError, ValueError, pa.ArrowException) as error:
        say_once(f"{place}: the rows kept there are damaged and are made again ({error})")
        return None
    note_use(_known_of(place))
    ends = tuple(accumulate(part.rows for part in parts))
    return Mapped(parts, ends, record_of, file), Mapped(parts, ends, example_of, file), known

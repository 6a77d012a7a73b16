"""Rows of which none is held: some of them, or several sources' behind one another."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Chosen(Sequence[Item]):
    """Some of the rows."""

    rows: Sequence[Item]
    at: np.ndarray

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: Any) -> Any:
        return Chosen(self.rows, self.at[index]) if isinstance(index, slice) else self.rows[int(self.at[index])]


def chosen(rows: Sequence[Item], at: np.ndarray) -> Sequence[Item]:
    """A list of what is a list."""
    return [rows[row] for row in at.tolist()] if isinstance(rows, list) else Chosen(rows, at)


@dataclass(frozen=True, slots=True)
class Chained(Sequence[Item]):
    """Rows behind one another."""

    parts: Sequence[Sequence[Item]]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        row = range(len(self))[index]
        for part in self.parts:
            if row < len(part):
                return part[row]
            row -= len(part)

    def __iter__(self) -> Iterator[Item]:
        return (row for part in self.parts for row in part)


def chained(parts: Sequence[Sequence[Item]]) -> Sequence[Item]:
    """A list where all of them are lists."""
    if len(parts) == 1:
        return parts[0]
    return [row for part in parts for row in part] if all(isinstance(part, list) for part in parts) else Chained(parts)


@runtime_checkable
class Columnar(Protocol):
    """Rows of a table with columns of numbers."""

    def column(self, name: str, at: np.ndarray | None = None) -> np.ndarray:
        """Of all rows, or of those at these places."""
        ...


def column(
    rows: Sequence[Item],
    name: str,
    of: Callable[[Item], float],
    dtype: type[np.generic],
    at: np.ndarray | None = None,
) -> np.ndarray:
    """[rows] of the dtype, which numpy would guess as float64 for integers on both sides of 2**63: the numbers of a
    column; `of` each row where they have none of that name. `at`: of the rows at these places alone."""
    match rows:
        case Chosen():
            return column(rows.rows, name, of, dtype, rows.at if at is None else rows.at[at])
        case Chained():
            lengths = [len(part) for part in rows.parts]
            return gathered(lengths, lambda part, at: column(rows.parts[part], name, of, dtype, at), at)
        case Columnar():
            return rows.column(name, at).astype(dtype, copy=False)
        case _:
            some = rows if at is None else [rows[row] for row in at.tolist()]
            return np.array([of(row) for row in some], dtype=dtype)


def gathered(
    lengths: Sequence[int], of_part: Callable[[int, np.ndarray | None], np.ndarray], at: np.ndarray | None
) -> np.ndarray:
    """What `of_part` has at the places `at` (None: at all), of parts of these lengths behind one another, each asked
    once for its own."""
    if at is None:
        return np.concatenate([of_part(part, None) for part in range(len(lengths))])
    ends = np.cumsum(lengths)
    part_of = np.searchsorted(ends, at, side="right")
    order = np.argsort(part_of, kind="stable")  # part by part, of which a million rows have a thousand
    parts, begins = np.unique(part_of[order], return_index=True)
    places = np.split(order, begins[1:]) if len(parts) else []
    values = [
        of_part(part, at[some] - (ends[part] - lengths[part]))
        for part, some in zip(parts.tolist(), places, strict=True)
    ]
    whole = np.empty(len(at), dtype=values[0].dtype if values else np.int64)
    for some, of_some in zip(places, values, strict=True):
        whole[some] = of_some
    return whole

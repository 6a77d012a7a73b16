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

    def column(self, name: str) -> np.ndarray: ...


def column(rows: Sequence[Item], name: str, of: Callable[[Item], float], dtype: type[np.generic]) -> np.ndarray:
    """[rows] of the dtype, which numpy would guess as float64 for integers on both sides of 2**63: the numbers of a
    column; `of` each row where they have none of that name."""
    match rows:
        case Chosen():
            return column(rows.rows, name, of, dtype)[rows.at]
        case Chained():
            return np.concatenate([column(part, name, of, dtype) for part in rows.parts])
        case Columnar():
            return rows.column(name).astype(dtype, copy=False)
        case _:
            return np.array([of(row) for row in rows], dtype=dtype)

"""Columns of text: as wide as a terminal, or with a tab between cells where the output goes elsewhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alignment.terminal import console

GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    cells: list[str]
    rank: int = 0
    """Where there is no room for all, those of the highest rank go first; those of 0 stay."""
    is_number: bool = False

    def width(self) -> int:
        return max(map(len, (self.title, *self.cells)))


def lines(columns: Sequence[Column]) -> Iterator[str]:
    """The table; on a terminal what is left out for want of room is named beneath."""
    if not console.is_terminal:
        for row in _rows(columns):
            yield "\t".join(row)
        return
    kept, gone = fitting(columns, console.width)
    widths = [column.width() for column in kept]
    for row in _rows(kept):
        cells = [
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(row, widths, kept, strict=True)
        ]
        yield (" " * GAP).join(cells).rstrip()
    if gone:
        yield f"not shown for want of room: {', '.join(gone)}"


def fitting(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """The columns that have room, and the titles of the others."""
    kept = list(columns)
    while sum(column.width() + GAP for column in kept) - GAP > width and any(column.rank for column in kept):
        kept.remove(max(reversed(kept), key=lambda column: column.rank))
    return kept, [column.title for column in columns if column not in kept]


def _rows(columns: Sequence[Column]) -> Iterator[tuple[str, ...]]:
    yield tuple(column.title for column in columns)
    yield from zip(*(column.cells for column in columns), strict=True)

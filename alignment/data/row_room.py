"""How much room kept rows take: beyond `ROOM` the least recently used are removed, and none that a process maps."""

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from alignment.terminal import say

ROOM = 50 * 10**9  # bytes of all rows that are kept, as recipes/data.md says


def held(place: Path) -> IO[bytes]:
    """The file, which nobody removes as long as what is returned is open.

    Raises:
        OSError: it cannot be read, or has just been removed.
    """
    file = place.open("rb")
    with suppress(OSError):  # a file system without locks; what is mapped outlives its name
        fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_nlink == 0:
        file.close()
        raise FileNotFoundError(f"{place} has just been removed")
    return file


def note_use(file: Path) -> None:
    """It was used now."""
    with suppress(OSError):  # a folder that is read alone
        os.utime(file)


@dataclass(frozen=True, slots=True)
class Entry:
    """The files of one name: rows, what is known of them, and what somebody who was killed has left of either."""

    files: tuple[Path, ...]
    size: int
    used: float


def make_room(place: Path) -> None:
    """Remove what was used the longest ago until all fits, but for the rows that lie at `place`, and say so."""
    entries = sorted(_entries(place.parent, but=place.stem), key=lambda entry: entry.used)
    taken = sum(entry.size for entry in entries) + sum(
        file.stat().st_size for file in place.parent.glob(f"{place.stem}.*")
    )
    gone = []
    for entry in entries:
        if taken <= ROOM:
            break
        if _removed(entry.files):
            taken -= entry.size
            gone.append(entry)
    if gone:
        freed = sum(entry.size for entry in gone)
        what = f"rows of {len(gone)} earlier sources, {freed / 1e9:.1f} GB, are removed"
        say(f"{place.parent}: {what}, the least recently used, for kept rows may take {ROOM / 1e9:g} GB")


def _entries(folder: Path, but: str) -> list[Entry]:
    named: dict[str, list[tuple[Path, os.stat_result]]] = {}
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # somebody else makes room too
            named.setdefault(file.name.partition(".")[0], []).append((file, file.stat()))
    return [
        Entry(tuple(file for file, _ in each), sum(s.st_size for _, s in each), max(s.st_mtime for _, s in each))
        for name, each in named.items()
        if name != but
    ]


def _removed(files: Iterable[Path]) -> bool:
    """Whether they are gone: nobody maps them, and nobody makes them, who has their lock."""
    with suppress(OSError):
        opened = [file.open("rb") for file in files]
        try:
            for file in opened:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in files:
                path.unlink(missing_ok=True)
        finally:
            for file in opened:
                file.close()
        return True
    return False

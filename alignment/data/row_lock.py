"""One process of a machine makes the rows that are kept in a place, and others wait for it."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from alignment.runs.written import PARTIAL
from alignment.terminal import say_once

IN_VAIN = 0o400  # the mode of the lock of who could not keep them
IN_SILENCE_S, POLL_S = 10.0, 0.05
"""How long one waits before that is said, and how often it is tried till then."""


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Inside, no other process makes the same; one that is killed lets go.

    Raises:
        OSError: another process, which this one has waited for, could not.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = place.with_suffix(".lock")
    with _locked(lock) as file:
        for left in place.parent.glob(f"{place.stem}.*{PARTIAL}"):  # of one that was killed
            left.unlink(missing_ok=True)
        try:
            yield
        except OSError:
            os.fchmod(file.fileno(), IN_VAIN)  # seen by those who wait for it; a full disk has room for it
            raise
        finally:
            lock.unlink(missing_ok=True)


def _locked(lock: Path) -> IO[str]:
    """The file that everybody else finds there too: who waited for one that its owner has removed waits anew."""
    while True:
        file = lock.open("a+")
        _wait(file, lock)
        found = os.fstat(file.fileno())
        if found.st_nlink:
            _sign(file)
            return file
        file.close()
        if found.st_mode & 0o777 == IN_VAIN:
            raise OSError("another process has tried")


def _wait(file: IO[str], lock: Path) -> None:
    """For the one who has it, which is said where it lasts: that one may be stopped."""
    till = time.monotonic() + IN_SILENCE_S
    while not _is_had(file):
        if time.monotonic() >= till:
            file.seek(0)
            say_once(f"waiting for {file.read() or 'another process'}, which reads the same rows to keep them ({lock})")
            fcntl.flock(file, fcntl.LOCK_EX)
            return
        time.sleep(POLL_S)


def _is_had(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(file: IO[str]) -> None:
    """Say who has it, for those who wait. Left out where the disk is full, which who keeps the rows will tell."""
    try:
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError:
        return

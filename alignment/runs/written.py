"""Files and folders that are there whole or not at all: filled beside their place, then given their name."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment.runs.disk import naming

PARTIAL = ".partial"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path to write to instead, which takes the place of `path` at the end; after an error nothing has changed.

    Several processes may do so at once, on several machines: the last one's file stays, whole.

    Raises:
        OSError: the new file cannot take its place.
    """
    beside = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")
    try:
        with naming(path):
            yield beside
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def begin_folder(folder: Path) -> Path:
    """The folder to fill instead, which is empty. What an earlier process did not bring to its end goes."""
    beside = filled_beside(folder)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    return beside


def filled_beside(folder: Path) -> Path:
    """Where `folder` is filled: the same path for all processes of a run."""
    return folder.with_name(folder.name + PARTIAL)


def publish_folder(folder: Path) -> None:
    """What was filled takes its place, on disk too; what was there before goes."""
    before = folder.with_name(folder.name + ".before")  # deleting takes time, in which neither would be there
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
        folder.rename(before)
    filled_beside(folder).rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """A rename or a new name is on disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""What a command that ends by a user's mistake leaves of a run that has done nothing: what was there before it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment.config.errors import ConfigError, UserError
from alignment.runs.claim import claim
from alignment.runs.folder import RunFolder
from alignment.runs.written import PARTIAL


def present(folder: RunFolder) -> set[Path]:
    """The folder and what lies in it, where it is there; the folders that it lies in, as far as they are."""
    parents = {parent for parent in folder.path.absolute().parents if parent.exists()}
    return parents | ({folder.path, *folder.path.iterdir()} if folder.path.exists() else set())


@contextmanager
def claimed(folder: RunFolder, before: set[Path]) -> Iterator[None]:
    """`claim`, after which nothing is left of a run that has done nothing.

    Raises:
        ConfigError: as `claim`.
    """
    try:
        with claim(folder.path):
            try:
                yield
            except UserError:
                give_up(folder, before)
                raise
    except ConfigError:
        remove_empty(folder.path, before)
        raise


@contextmanager
def clearing(folder: RunFolder, before: set[Path]) -> Iterator[None]:
    """Where a run ends early, the folders that it was filling go: half a checkpoint may be what fills the disk. Of one
    that has done nothing, all goes, so that no ending is noted."""
    is_whole = False
    try:
        try:
            yield
            is_whole = True
        finally:
            if not is_whole:
                clear(folder)
    except UserError:
        give_up(folder, before)
        raise


def clear(folder: RunFolder) -> None:
    """Folders that were being filled go. For who has claimed the run's folder."""
    for half in (*folder.path.glob(f"*{PARTIAL}"), *folder.checkpoints.glob(f"*{PARTIAL}")):
        if half.is_dir():
            shutil.rmtree(half, ignore_errors=True)


def give_up(folder: RunFolder, before: set[Path]) -> None:
    """Leave nothing behind of a run that a user's mistake ended before it had done anything, but what was `present`
    before it.

    What a submission to a cluster wrote stays, for the mistake is told in its log; the claim on the folder goes.
    """
    made = present(folder) - before - set(folder.path.absolute().parents)
    own = {folder.config, folder.started, folder.progress, folder.checkpoints}
    submitted = {folder.script, folder.submitted, folder.logs}
    if any(folder.checkpoints.glob("*")) or not made <= own | submitted | {folder.path, folder.owner}:
        return
    if folder.checkpoints in made:
        folder.checkpoints.rmdir()
    for path in made & {folder.config, folder.started, folder.progress}:
        path.unlink()
    if folder.path in made and set(folder.path.iterdir()) <= {folder.owner}:
        shutil.rmtree(folder.path)
    remove_empty(folder.path, before)


def remove_empty(folder: Path, before: set[Path]) -> None:
    """The folder and those that it lies in go where they were made since and nothing else lies in them."""
    for each in (folder, *folder.absolute().parents):
        if each in before:
            return
        try:
            each.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # something lies in it
            return


@contextmanager
def leaving_no_record(place: RunFolder, name: str, code: int) -> Iterator[list[Path]]:
    """Of a sweep whose first run ends by exit code `code` before it has done anything, Hydra's record of it, the one
    file that is there, goes too.

    Args:
        place: where the sweep will be, but for the second at which it begins.
        name: the record's.

    Yields:
        a list for the folders in which its runs find themselves.
    """
    before, folders = present(place), list[Path]()
    try:
        yield folders
    except SystemExit as error:
        for folder in {each for each in folders if error.code == code and each.is_dir()}:
            if set(folder.iterdir()) - before == {folder / name}:
                (folder / name).unlink()
                remove_empty(folder, before)
        raise

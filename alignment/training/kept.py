"""The folder of the best weights so far, in step with what the checkpoints know."""

import shutil
from collections.abc import Callable
from pathlib import Path

from alignment.distributed.collectives import barrier, from_main, is_main
from alignment.runs.disk import naming
from alignment.runs.folder import RunFolder, note_step, noted_step
from alignment.runs.written import begin_folder, filled_beside, publish_folder

Write = Callable[[Path], None]
"""Writes a model, as it is now, into a folder. All processes call it; the main one has the folder."""


class Kept:
    """The folder `best/`, and beside it, until a checkpoint knows of newer ones, the weights that the newest checkpoint
    knows as the best: a run that goes on from there, with other settings, may never come to the newer ones again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.earlier = folder, RunFolder(folder.parent).best_earlier
        self.saved: int | None = None
        """The steps that the weights have taken that the newest checkpoint knows."""

    def replace(self, steps: int, write: Write) -> None:
        """Keep the weights as they are now, after so many steps. All processes call it."""

        def noting(new: Path) -> None:
            write(new)  # which waits for a checkpoint that is being written, and is to find what it knows
            if not is_main():
                return
            note_step(new, steps)
            if self.saved is not None and noted_step(self.folder) == self.saved:
                shutil.rmtree(self.earlier, ignore_errors=True)
                self.folder.rename(self.earlier)

        write_whole(self.folder, noting)

    def restore(self, steps: int) -> bool:
        """What is kept is what a checkpoint knows, whose weights have taken so many steps. Returns whether it is there:
        where the newest checkpoint is damaged, an older one may know weights that have made room for better ones, and
        those are of steps that the run may never come to again. They go."""
        is_there: bool = from_main(self._restored(steps) if is_main() else False)
        self.saved = steps if is_there else None
        return is_there

    def forget(self) -> None:
        """What is kept is of steps that the run no longer has, or is the best by something else. The main process
        alone removes it, and is the one that fills the folder again."""
        self.saved = None
        if is_main():
            for folder in (self.folder, self.earlier):
                shutil.rmtree(folder, ignore_errors=True)

    def _restored(self, steps: int) -> bool:
        if noted_step(self.folder) == steps:
            return True
        shutil.rmtree(self.folder, ignore_errors=True)
        is_there = noted_step(self.earlier) == steps
        if is_there:
            self.earlier.rename(self.folder)
        else:
            shutil.rmtree(self.earlier, ignore_errors=True)
        return is_there

    def leave(self, model: Path) -> None:
        """As the run's model."""
        write_whole(model, lambda new: _copy(self.folder, new))
        if is_main() and noted_step(self.folder) == self.saved:
            shutil.rmtree(self.earlier, ignore_errors=True)


def _copy(folder: Path, new: Path) -> None:
    if is_main():
        shutil.copytree(folder, new, dirs_exist_ok=True)


def write_whole(folder: Path, write: Write) -> None:
    """Fill a folder that is there whole or not at all. All processes call it and `write`."""
    with naming(folder):
        if is_main():
            begin_folder(folder)
        write(filled_beside(folder))
        if is_main():
            publish_folder(folder)
    barrier()

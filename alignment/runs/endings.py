"""How a run ended that did not come to its end: a line of its history, which counts until the next one."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from alignment.preempt import Preempted
from alignment.runs.folder import RunFolder
from alignment.terminal import say

ENDED, FAILED, INTERRUPTED = "ended", "failed", "interrupted"


class NotedEnding:
    """`with NotedEnding(folder):` around a run's work. What ends it early goes on its way, noted. Where nothing is left
    of the run, as of one whose data had a mistake, nothing is noted."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            note_ending(self.folder, error)
        if isinstance(error, KeyboardInterrupt) and self.folder.config.exists():
            _say_way(self.folder)


def note_ending(folder: RunFolder, error: BaseException) -> None:
    if not folder.started.exists():
        return
    is_stop = isinstance(error, Preempted | KeyboardInterrupt)
    with suppress(OSError):  # of a full disk, which is what the run may have failed of
        folder.note(ended=INTERRUPTED if is_stop else FAILED, why=_line(error), step=folder.newest_step())


def _say_way(folder: RunFolder) -> None:
    """Of a run that was cut where it was, which a request to stop that was heard out tells of itself."""
    step = folder.newest_step()
    what = "interrupted before a step was saved" if step is None else f"interrupted; step {step} is saved"
    way = "to begin it anew" if step is None else "to go on"
    say(f"{folder.path}: {what}; {way}: alignment run {shlex.quote(str(folder.config))}")


def ending_of(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The line of the history that tells how the run ended; nothing where it has gone on since, or was killed."""
    return dict(history[-1]) if history and ENDED in history[-1] else {}


def _line(error: BaseException) -> str:
    """What an error says: of a user's mistake and a request to stop all of it, of another its kind and its last line,
    which is where a process that was launched tells it."""
    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C"
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ValueError | Preempted):
        return " ".join(" ".join(lines).split()) or type(error).__name__
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__

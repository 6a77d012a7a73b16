"""This process: whose it is, and how it imports what is heavy. Needs neither Hydra nor torch, which take seconds.

One that `launch.processes` started says nothing of its own end, and does not outlive the command.
"""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import CDLL
from io import BufferedRandom, BufferedWriter, TextIOWrapper
from typing import NoReturn

LAUNCHED_BY = "ALIGNMENT_LAUNCHED_BY"  # the launcher's process id, in the environment of those that it starts
NO_COMPILER = "TORCHDYNAMO_DISABLE"
PR_SET_PDEATHSIG = 1


def is_ours() -> bool:
    """Whether our own launcher started this process, and says how it ended."""
    return LAUNCHED_BY in os.environ


def is_launched() -> bool:
    """Whether a launcher, ours or torchrun or Slurm's script, started this process and told it its rank."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def belong_to_launcher() -> None:
    """End with the launcher, however it ends, and without a word when the user interrupts."""
    if not is_ours():
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[LAUNCHED_BY]):  # it was gone before we could ask
        os._exit(1)


def end(code: int) -> NoReturn:
    """As sys.exit, but at once in one of several processes: others may be gone, and nobody waits for anybody."""
    if not is_launched():
        sys.exit(code)
    _end_at_once(code)


@contextmanager
def ending_early() -> Iterator[None]:
    """One of several processes that has done what is within ends when its exit handlers have run, before the
    interpreter takes itself down: a thread of its process group that has yet to let go of a tensor, with the others
    finished and the group left, would abort it then, with a line of C++ on stderr and exit code 134."""
    codes: list[int] = []

    def stop() -> None:
        for code in codes:
            _end_at_once(code)

    if is_launched():
        atexit.register(stop)  # the handlers that are registered later run before it
    try:
        yield
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            codes.append(error.code or 0)
        raise
    codes.append(0)


def _end_at_once(code: int) -> NoReturn:
    """With what is in the buffers of open files, also a reward function's, written as an interpreter's end does it."""
    gc.unfreeze()
    for each in gc.get_objects():
        if type(each) in (TextIOWrapper, BufferedWriter, BufferedRandom):
            with suppress(OSError, ValueError):  # its reader is gone, its disk is full, it is closed
                each.flush()
    os._exit(code)


@contextmanager
def importing() -> Iterator[None]:
    """What there is when the libraries imported within are loaded stays to the end, and the garbage collector never
    walks over it: else a third of a short run's processor time goes there. The first time only, for what there is
    later, in the next job of a sweep, may be garbage."""
    is_first = gc.get_freeze_count() == 0
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    if is_first:
        gc.freeze()


@contextmanager
def uncompiled() -> Iterator[None]:
    """torch.compile returns what it is given: what a library decorates with it while it is imported within stays as it
    is, and the compiler, which takes two seconds to load, is loaded only where somebody has a use for it."""
    former = os.environ.get(NO_COMPILER)
    os.environ[NO_COMPILER] = "1"
    try:
        yield
    finally:
        os.environ.pop(NO_COMPILER)
        if former is not None:
            os.environ[NO_COMPILER] = former

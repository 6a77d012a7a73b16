"""This process: whose it is, and how it imports what is heavy. Needs neither Hydra nor torch, which take seconds.

One that `launch.processes` started says nothing of its own end, and does not outlive the command.
"""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import CDLL
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
    die_with_parent()
    if os.getppid() != int(os.environ[LAUNCHED_BY]):  # it was gone before we could ask
        os._exit(1)


def die_with_parent() -> None:
    """However that one ends."""
    if sys.platform == "linux":
        CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end(code: int) -> NoReturn:
    """As sys.exit, but at once in one of several processes: what its group's threads still wait for comes from others,
    which may be gone, and they would abort an orderly exit."""
    if not is_launched():
        sys.exit(code)
    try:
        for stream in (sys.stdout, sys.stderr, sys.__stderr__):  # which torch replaces while a hook runs
            if stream is not None:
                with suppress(OSError, ValueError):  # its reader is gone, its disk is full, it is closed
                    stream.flush()
    finally:
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
    with environment(NO_COMPILER, "1"):
        yield


@contextmanager
def unseen(package: str) -> Iterator[None]:
    """A package that is not loaded is as if it were not installed within, so that who only asks what it could do with
    it loads it neither."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # of which the language says: it cannot be imported
    try:
        yield
    finally:
        del sys.modules[package]


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """A variable of the environment within, and what it was, if anything, behind."""
    former = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if former is not None:
            os.environ[name] = former

"""Preemption: SIGTERM, SIGUSR1 and a user's Ctrl-C ask a run to stop where it can go on later.

A run that has nothing to lose yet ends at once. From `hold` on the signal is only noted: the loop finishes its step,
saves, and ends then; a second Ctrl-C ends it where it is. Needs the standard library only, so that signals are heard
before anything is imported.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from alignment.process import is_ours

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
INTERRUPTED = 128 + signal.SIGINT  # as shells have it


class Preempted(BaseException):
    """The run was asked to stop, and can go on. Not an Exception, which a library might swallow."""


@dataclass(slots=True)
class _Notice:
    """What has been heard in this process, which has one set of signals however many runs it makes."""

    signal: str = ""
    holding: bool = False
    step: int = 0
    """The one that is being taken; 0: none is known here."""


_notice = _Notice()


@contextmanager
def listening() -> Iterator[None]:
    """SIGTERM, SIGUSR1 and SIGINT are requests to stop in here; the handlers that were there before come back
    afterwards. SIGINT stays ignored where it is, as in a shell's background.

    Signals reach the main thread only: in another one, nothing is changed. A process of our own launcher is asked with
    SIGUSR1: SIGTERM ends it, as torch's launcher means it when another rank has failed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _release()
    heard = list(SIGNALS[1:] if is_ours() else SIGNALS)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        heard.append(signal.SIGINT)
    before = {number: signal.signal(number, _hear) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _notice.signal = ""


@contextmanager
def one_run() -> Iterator[None]:
    """Around each run of a command: a signal that came while the one before it was finishing stops this one."""
    if _notice.signal and not _notice.holding:
        raise Preempted(reason())
    try:
        with unwrapped():
            yield
    finally:
        _release()


@contextmanager
def unwrapped() -> Iterator[None]:
    """A request to stop comes out as it was raised. Until Python 3.12 one that is heard while a class names its fields
    (`__set_name__`) comes out of it as the cause of a RuntimeError, of which transformers, importing, makes another."""
    try:
        yield
    except (RuntimeError, ImportError) as error:
        asked: BaseException | None = error
        while asked is not None and not isinstance(asked, Preempted | KeyboardInterrupt):
            asked = asked.__cause__
        if asked is None:
            raise
        raise asked from None


def hold() -> None:
    """From here to the end of the run there is something to save: whoever asks waits for the end of the step."""
    _notice.holding = True


def at_step(step: int) -> None:
    """Which step is being taken from here on."""
    _notice.step = step


def requested() -> bool:
    return bool(_notice.signal)


def interrupt() -> None:
    """A user's Ctrl-C is noted, and what comes of it said.

    Raises:
        KeyboardInterrupt: the run has been asked to stop before.
    """
    if _notice.signal:
        raise KeyboardInterrupt
    _notice.signal = signal.SIGINT.name
    acknowledge(signal.SIGINT)


def acknowledge(number: int) -> None:
    """Say at once that the signal was heard, for the end of the step may be minutes away."""
    step = f"step {_notice.step}" if _notice.step else "the step"
    again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
    line = f"\nalignment: heard {signal.Signals(number).name}: finishing {step}, then saving{again}\n"
    os.write(2, line.encode())  # not by a buffer


def exit_code() -> int:
    """Of a run that was asked to stop: a shell's for what its user has interrupted."""
    return INTERRUPTED if _notice.signal == signal.SIGINT.name else EXIT_CODE


def reason() -> str:
    if is_ours():  # the launcher has passed on another signal than it was sent
        return "stopped by a signal"
    return f"stopped by {_notice.signal or 'a signal to another process'}"


def requeued() -> str:
    """Under Slurm, have the job put back into its queue, unless its user has interrupted it; what came of it, as the
    end of a sentence, else nothing."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or exit_code() == INTERRUPTED:
        return ""
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        return f"; Slurm job {job} is not requeued: there is no scontrol"
    except subprocess.CalledProcessError as error:
        return f"; Slurm job {job} is not requeued: {error.stderr}"
    return f"; Slurm job {job} is requeued"


def is_main() -> bool:
    """Of several processes, the one that speaks; known before they have met."""
    return os.environ.get("RANK", "0") == "0"


def _hear(number: int, frame: FrameType | None) -> None:
    """The first signal counts: one that comes while the run is already ending must not break that off, but for a
    user's."""
    if number == signal.SIGINT:
        if not _notice.holding:
            raise KeyboardInterrupt
        interrupt()
        return
    if _notice.signal:
        return
    _notice.signal = signal.Signals(number).name
    if not _notice.holding:
        raise Preempted(reason())
    if is_main() and not is_ours():  # whose launcher has said so
        acknowledge(number)


def _release() -> None:
    """One process may end at once where it has nothing to save. Several must agree first, or the others would wait."""
    _notice.holding = os.environ.get("WORLD_SIZE", "1") != "1"
    _notice.step = 0

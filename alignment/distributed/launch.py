"""A run in several processes on this machine, through torch.distributed's launcher; and what a process tells it."""

import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType, TracebackType
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alignment.config.errors import UserError
from alignment.distributed.collectives import is_lost
from alignment.preempt import SIGNALS, Preempted, acknowledge, interrupt
from alignment.process import LAUNCHED_BY, end, is_launched, is_ours
from alignment.runs.written import whole_file

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # set by torch's launcher for each process
TALKERS = ("torch.distributed", "torch.distributed.elastic.agent.server.api")
CRASHED = 1  # as Python has it
TAIL = 20  # lines of a process's stderr that are shown where it could not say what happened


class RankFailedError(Exception):
    """A process of the run failed, the first of them says how. `code`: what the command ends with."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def launch(arguments: list[str], processes: int) -> None:
    """Run `python ARGUMENTS` in as many processes, which find their ranks in the environment, until all are done.

    One that fails ends all of them. SIGTERM, SIGUSR1 and a first Ctrl-C reach them as SIGUSR1, the request to save and
    stop. Rank 0 has the terminal, what the others print is shown where they fail without a word.

    Raises:
        UserError: a process ended with one.
        Preempted: the processes were asked to stop, and have saved.
        RankFailedError: a process failed otherwise.
        KeyboardInterrupt: the user has interrupted the run, for the second time.
    """
    for talker in TALKERS:  # what they have to say is said below, once
        logging.getLogger(talker).setLevel(logging.CRITICAL)
    os.environ[LAUNCHED_BY] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    heard = [number for number in (*SIGNALS, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, _forward) for number in heard}
    with TemporaryDirectory() as folder:
        others = dict.fromkeys(range(1, processes), Std.ALL)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=others),
            run_id=str(os.getpid()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle="SIGHUP,SIGQUIT",
        )
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as error:
            _raise(error, Path(folder))
        except SignalException as error:
            raise KeyboardInterrupt from error
        finally:
            del os.environ[LAUNCHED_BY]
            for number, handler in former.items():
                signal.signal(number, handler)


def _forward(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        interrupt()
    else:
        acknowledge(number)
    for child in psutil.Process().children():
        child.send_signal(signal.SIGUSR1)


def _raise(error: ChildFailedError, logs: Path) -> None:
    failures = error.failures
    rank = min(failures, key=lambda rank: _guilt(failures[rank]))
    failure, told = failures[rank], _error_info(failures[rank])
    if told.get("is_stop"):  # whatever it ended with: the launcher ends the rank that is not the first to go
        raise Preempted(told["text"]) from error
    if told.get("is_user_error"):
        raise UserError(told["text"]) from error
    code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    if told:
        raise RankFailedError(f"rank {rank}:\n{told['text']}", code) from error
    said = [line for path in logs.rglob(f"{rank}/stderr.log") for line in _last_of(path)]
    end = f"rank {rank} was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"rank {rank} failed"
    raise RankFailedError("\n".join([*said, end]), code) from error


def _last_of(log: Path) -> list[str]:
    """Of what a process has written on its standard error, whatever the bytes are."""
    return log.read_bytes().decode(errors="replace").splitlines()[-TAIL:]


def _guilt(failure: ProcessFailure) -> tuple[int, int]:
    """Sorts the failures, their cause first: what a process says of itself, before one that was killed and could not
    say, before those that only lost another, before those that the launcher ended for it."""
    told = _error_info(failure)
    if told:
        return (2 if told["is_lost"] else 0), told["time_ns"]
    return (3 if failure.exitcode == -signal.SIGTERM else 1), 0


def _error_info(failure: ProcessFailure) -> dict[str, Any]:
    message = failure.error_file_data["message"]
    return dict(message["extraInfo"]) if isinstance(message, dict) else {}


def leave_with_launcher(error: BaseException, *, is_user_error: bool) -> bool:
    """Leave word of this process's error with the launcher. Whether it will be shown, so that this process need not:
    by our launcher; by torchrun, in its own way, for all ranks but the main one."""
    path = os.environ.get(ERROR_FILE)
    if path is None:
        return False
    text = str(error) if is_user_error else "".join(traceback.format_exception(error))
    now = time.time_ns()
    extra: dict[str, Any] = {"py_callstack": text, "timestamp": str(now // 10**9), "time_ns": now}
    extra |= {"text": text.rstrip(), "is_user_error": is_user_error, "is_lost": is_lost(error)}
    extra["is_stop"] = isinstance(error, Preempted)
    with whole_file(Path(path)) as word:  # where another rank has failed, this process may be ended at any moment
        word.write_text(json.dumps({"message": {"message": str(error), "extraInfo": extra}}))
    return is_ours() or (is_user_error and os.environ.get("RANK") != "0")


def tell_launcher() -> None:
    """From here on an error that ends one of several processes does so at once, and is left with the launcher that has
    named a file for it."""
    if is_launched():
        sys.excepthook = _hook


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    try:
        if not _is_heard(error):  # not to sys.stderr, which torch has replaced here to print it when this has returned
            traceback.print_exception(error, file=sys.__stderr__)
    finally:
        end(CRASHED)


def _is_heard(error: BaseException) -> bool:
    try:
        return leave_with_launcher(error, is_user_error=False)
    except OSError as unsaid:
        error.add_note(f"The launcher could not be told: {unsaid}")
        return False

"""The verb `logs`: what the processes of a submitted run printed."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from alignment.config.errors import UserError
from alignment.runs.folder import RunFolder
from alignment.runs.settings import runs_in
from alignment.slurm import commands
from alignment.slurm.folder import job_of
from alignment.user_error import fail

POLL_S = 1.0
ASK_EVERY = 5  # silent polls between two questions to Slurm


def print_log(folder: Path, *, rank: int | None, follow: bool) -> None:
    """The newest log under `folder`; `follow` goes on until its job is over."""
    try:
        log = _awaited(folder) if follow else newest_log(folder)
        if log is None:
            fail(f"{folder}: {_why_none(folder)}")
        run = log.parents[1]
        if rank is not None and not _is_labelled(run) and rank != 0:
            fail(f"--rank must be 0, for the job has one process, got {rank}")
        wanted = rank if rank is not None and _is_labelled(run) else None
        is_empty = True
        for line in of_rank(lines(log, _is_over(run) if follow else None), wanted):
            print(line, end="", flush=follow)
            is_empty = False
        if wanted is not None and is_empty:
            fail(f"no line of rank {wanted} in {log}")
    except UserError as error:
        fail(str(error))


def newest_log(folder: Path) -> Path | None:
    """Of a run, of the stages of a pipeline, of the runs of a sweep."""
    logs = [log for run in runs_in(folder) for log in RunFolder(run).logs.glob("*.log")]
    return max(logs, key=lambda log: (log.stat().st_mtime_ns, log.name), default=None)


def of_rank(whole: Iterator[str], rank: int | None) -> Iterator[str]:
    """The lines of one process, without the number that `srun --label` puts before them; all lines for None."""
    if rank is None:
        yield from whole
        return
    label = re.compile(rf" *{rank}: ?")
    yield from (line[found.end() :] for line in whole if (found := label.match(line)))


def lines(path: Path, is_over: Callable[[], bool] | None) -> Iterator[str]:
    """The lines of a file, whole ones; where `is_over` is given, those to come too, until it is true."""
    with path.open(errors="replace") as file:
        part, silent, ended = "", 0, is_over is None
        while True:
            text = file.readline()
            part += text
            if part.endswith("\n"):
                yield part
                part, silent = "", 0
            elif not text and ended:
                yield from [part] if part else []
                return
            elif not text:
                silent += 1
                ended = is_over is not None and silent % ASK_EVERY == 0 and is_over()
                time.sleep(0 if ended else POLL_S)


def _awaited(folder: Path) -> Path | None:
    """The newest log, waited for while a job is yet to start."""
    said = ""
    while (log := newest_log(folder)) is None:
        jobs = [job for run in runs_in(folder) if (job := job_of(run)) is not None]
        states = [state for job in jobs if (state := commands.find(job)) is not None and not state.is_over()]
        if not states:
            return None
        waiting = f"job {jobs[0]} is {states[0].state} ({states[0].reason or 'starting'}), waiting for its log"
        if waiting != said:
            print(f"alignment: {waiting}", file=sys.stderr)
        said = waiting
        time.sleep(POLL_S * ASK_EVERY)
    return log


def _why_none(folder: Path) -> str:
    jobs = [job for run in runs_in(folder) if (job := job_of(run)) is not None]
    if not jobs:
        return "no log, for it was not submitted: `alignment run` prints to its terminal"
    state = commands.find(jobs[0])
    return f"no log so far: job {jobs[0]} is {'forgotten by Slurm' if state is None else state.state}"


def _is_labelled(run: Path) -> bool:
    """Whether srun put each process's number before its lines, as the script of the run, or of its array, says."""
    scripts = [path for path in (RunFolder(run).script, RunFolder(run.parent).script) if path.exists()]
    return bool(scripts) and " --label" in scripts[0].read_text()


def _is_over(run: Path) -> Callable[[], bool]:
    def is_over() -> bool:
        job = job_of(run)
        state = None if job is None else commands.find(job)
        return state is None or state.is_over()

    return is_over

"""The verb `status`: how far a run is, from its folder and, where it was submitted, from Slurm."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignment.config.errors import UserError
from alignment.runs.folder import RunFolder
from alignment.runs.rows import read_rows
from alignment.slurm import commands
from alignment.slurm.folder import job_of
from alignment.user_error import fail

HEAD = ("", "state", "job", "step", "loss")


@dataclass(frozen=True, slots=True)
class Status:
    """Of one run."""

    folder: Path
    job: str | None
    known: commands.JobState | None
    """What Slurm says of the job; None: there is none, or it is forgotten."""
    step: int
    num_steps: int | None
    metrics: dict[str, float]
    """Of the newest row."""
    is_started: bool
    is_finished: bool
    written: float | None
    """When the newest row was written, in seconds since the epoch."""
    trouble: str = ""
    """Why Slurm could not be asked."""
    damage: str = ""
    """Why nothing can be said of it: which of its files cannot be read."""

    def state(self) -> str:
        """Slurm's word with its reason; without it, what the files show."""
        if self.damage:
            return "damaged"
        if self.known is not None:
            return f"{self.known.state} ({self.known.reason})" if self.known.reason else self.known.state
        if self.is_finished:
            return "finished"
        return "not finished" if self.is_started else "not started"

    def steps(self) -> str:
        if not self.step:
            return "-"
        return str(self.step) if self.num_steps is None else f"{self.step} of {self.num_steps}"


def print_status(folder: Path) -> None:
    try:
        runs = runs_in(folder)
        found = [read_status(folder)] if runs == [folder] else [status_of(run) for run in runs]
    except UserError as error:
        fail(f"status: {error}")
    if not runs:
        fail(f"RUN must hold a run, a sweep or a pipeline, got {str(folder)!r}")
    for line in dict.fromkeys(status.trouble for status in found if status.trouble):
        print(f"Slurm cannot be asked, so this is from the files only: {line}")
    print("\n".join(_one(found[0]) if runs == [folder] else _table(found)))


def runs_in(folder: Path) -> list[Path]:
    """The folder itself where it is a run's; the stages of a pipeline, the runs of a sweep, in their order."""
    if RunFolder(folder).config.exists():
        stages = _settings(folder).get("stages")
        if stages is None:
            return [folder]
        if not isinstance(stages, list) or not all(isinstance(stage, dict) and "name" in stage for stage in stages):
            raise UserError(
                f"{RunFolder(folder).config}: stages must be a list of mappings with a name, got {stages!r}"
            )
        return [folder / str(stage["name"]) for stage in stages]
    try:
        found = [inner for inner in folder.iterdir() if _may_be_run(inner)]
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from error
    return sorted(found, key=lambda path: (len(path.name), path.name))  # 10 comes after 9


def _may_be_run(folder: Path) -> bool:
    """One that cannot be looked into counts as one, so that it is told."""
    try:
        return RunFolder(folder).config.exists()
    except PermissionError:
        return True


def status_of(run: Path) -> Status:
    """Of one among others, which are shown whatever it is like."""
    try:
        return read_status(run)
    except UserError as error:
        return Status(run, None, None, 0, None, {}, False, False, None, damage=" ".join(str(error).split()))


def read_status(folder: Path) -> Status:
    job, known, trouble = job_of(folder), None, ""
    settings = _settings(folder)
    train = settings.get("train")
    if job is not None:
        try:
            known = commands.find(job)
        except UserError as error:
            trouble = str(error)
    files = RunFolder(folder)
    row = _newest_row(files.metrics)
    return Status(
        folder=folder,
        job=job,
        known=known,
        step=row.pop("step", 0),
        num_steps=train.get("max_steps") if isinstance(train, dict) else None,
        metrics=row,
        is_started=files.started.exists(),
        is_finished=files.finished.exists(),
        written=files.metrics.stat().st_mtime if files.metrics.exists() else None,
        trouble=trouble,
    )


def _settings(folder: Path) -> dict[str, Any]:
    """Raises:
    UserError: config.yaml is not what a run writes.
    """
    path = RunFolder(folder).config
    try:
        settings = yaml.safe_load(path.read_text()) if path.exists() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold keys and values, got {settings!r}")
    return settings


def _newest_row(log: Path) -> dict[str, Any]:
    """The last whole line: the run may be writing the next one."""
    rows = read_rows(log) if log.exists() else []
    return dict(rows[-1]) if rows else {}


def _one(status: Status) -> Iterator[str]:
    yield str(status.folder)
    yield f"  state     {status.state()}"
    if status.known is not None:
        yield f"  job       {status.job}{''.join(f', {word}' for word in _of_the_job(status.known))}"
    elif status.job is not None:
        yield f"  job       {status.job}, which Slurm does not know any more"
    yield f"  step      {status.steps()}"
    if status.written is not None:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in _numbers(status.metrics))
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.written))
        yield f"  metrics   {shown}  (written {when})"
    yield f"  finished  {'yes' if status.is_finished else 'no'}"
    if status.known is not None and status.known.state in commands.ENDED_BADLY:
        yield f"  why: alignment logs {shlex.quote(str(status.folder))}"


def _numbers(metrics: dict[str, Any]) -> Iterator[tuple[str, float]]:
    yield from ((name, value) for name, value in metrics.items() if isinstance(value, (int, float)))


def _of_the_job(known: commands.JobState) -> Iterator[str]:
    if known.nodes:
        yield f"on {known.nodes}"
    if known.run_time:
        yield f"for {known.run_time}" + (f" of {known.time_limit}" if known.time_limit else "")
    if known.restarts:
        yield f"requeued {known.restarts} time{'s' if known.restarts > 1 else ''}"
    if known.is_over():
        yield f"exit code {known.exit_code}"


def _table(found: list[Status]) -> Iterator[str]:
    rows = [HEAD]
    for status in found:
        loss = f"{status.metrics['loss']:.4g}" if "loss" in dict(_numbers(status.metrics)) else "-"
        rows.append((status.folder.name, status.state(), status.job or "-", status.steps(), loss))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
    yield from (f"{status.folder.name} is damaged: {status.damage}" for status in found if status.damage)
    num_finished = sum(status.is_finished for status in found)
    yield f"{num_finished} of {len(found)} finished"

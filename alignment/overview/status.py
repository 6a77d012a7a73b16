"""How far a run is, from its folder and, where it was submitted, from Slurm."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.config.errors import UserError
from alignment.config.metrics import EVAL
from alignment.runs.claim import Life, Owner, life_of, this_process
from alignment.runs.endings import ENDED, INTERRUPTED, ending_of
from alignment.runs.folder import RunFolder
from alignment.runs.notes import read_note
from alignment.runs.rows import Row, read_rows
from alignment.runs.settings import settings_of
from alignment.slurm import commands
from alignment.slurm.folder import job_of

RECENT = 20  # rows whose time says how long a step takes


@dataclass(frozen=True, slots=True)
class Status:
    """Of one run."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    job: str | None = None
    known: commands.JobState | None = None
    """What Slurm says of the job; None: there is none, or it is forgotten."""
    life: tuple[Life, Owner] | None = None
    """Of the process that writes the folder; None: there is none."""
    rows: tuple[Row, ...] = ()
    """Of metrics.jsonl."""
    history: tuple[dict[str, Any], ...] = ()
    num_steps: int | None = None
    is_started: bool = False
    is_finished: bool = False
    stopped: str = ""
    """Why it was finished before its last step."""
    written: float | None = None
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
            return "finished: nothing saved" if self.num_steps == 0 else "finished"
        if self.life is not None:
            return self.life[0].value
        return self._ended() or ("not finished" if self.is_started else "not started")

    def place(self) -> str:
        """`state`, and of a run that is at work on another machine, on which."""
        state = self.state()
        is_away = self.life is not None and self.life[1].host != this_process().host
        is_of_life = self.life is not None and state == self.life[0].value
        return f"{state} on {self.life[1].host}" if self.life is not None and is_away and is_of_life else state

    def why(self) -> str:
        """Why it ended before its last step, in its own words; nothing of one that goes on, or was killed."""
        if self.is_finished or self.life is not None:
            return self.stopped if self.is_finished else ""
        return str(ending_of(self.history).get("why", ""))

    def _ended(self) -> str:
        ending = ending_of(self.history)
        if ending.get(ENDED) != INTERRUPTED:
            return str(ending.get(ENDED, ""))
        step = ending.get("step")
        return "interrupted before a step was saved" if step is None else f"interrupted at step {step}"

    def step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    def steps(self) -> str:
        if not self.step():
            return "-"
        return str(self.step()) if self.num_steps is None else f"{self.step()} of {self.num_steps}"

    def latest(self) -> Row:
        """The newest value of each metric: evaluations are in fewer rows than the others."""
        found: Row = {}
        for row in self.rows:
            found |= {name: value for name, value in row.items() if isinstance(value, int | float)}
        return found

    def newest(self, *, of_evaluation: bool) -> Row:
        """The newest row with an evaluation, or of training; nothing where there is none."""
        rows = [row for row in self.rows if any(name.startswith(EVAL) for name in row) or not of_evaluation]
        return dict(rows[-1]) if rows else {}

    def seconds_left(self, now: float) -> float | None:
        """To the end, as long as recent steps took; None where it does not run, or nobody knows."""
        recent = self.rows[-RECENT - 1 :]
        is_running = self.life is not None and self.life[0] is Life.running and not self.is_finished
        if not is_running or self.num_steps is None or len(recent) < 2 or self.written is None:
            return None
        taken = sum(row.get("time/step_s", 0.0) for row in recent[1:])
        steps = recent[-1]["step"] - recent[0]["step"]
        if not steps or not taken:
            return None
        return max(0.0, taken / steps * (self.num_steps - self.step()) - (now - self.written))


def status_of(run: Path) -> Status:
    """Of one among others, which are shown whatever it is like."""
    try:
        return read_status(run)
    except UserError as error:
        return Status(run, damage=" ".join(str(error).split()))


def read_status(folder: Path) -> Status:
    """Raises:
    UserError: one of its files is damaged.
    """
    job, known, trouble = job_of(folder), None, ""
    settings = settings_of(folder)
    if job is not None:
        try:
            known = commands.find(job)
        except UserError as error:
            trouble = str(error)
    files = RunFolder(folder)
    return Status(
        folder=folder,
        settings=settings,
        job=job,
        known=known,
        life=life_of(folder),
        rows=tuple(read_rows(files.metrics)) if files.metrics.exists() else (),
        history=tuple(files.noted()),
        num_steps=_num_steps(files, settings),
        is_started=files.started.exists(),
        is_finished=files.finished.exists(),
        stopped=str(read_note(files.finished).get("stopped", "")),
        written=files.metrics.stat().st_mtime if files.metrics.exists() else None,
        trouble=trouble,
    )


def _num_steps(files: RunFolder, settings: dict[str, Any]) -> int | None:
    """As the run has noted it, which knows the rows of its epochs; before, what its config says."""
    noted = read_note(files.progress).get("num_steps")
    if isinstance(noted, int):
        return noted
    train = settings.get("train")
    asked = train.get("max_steps") if isinstance(train, dict) else None
    return asked if isinstance(asked, int) else None


def ago(then: float) -> str:
    """How long since, in the largest unit that fits."""
    seconds = max(0.0, time.time() - then)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"

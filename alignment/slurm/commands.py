"""The commands of Slurm that are called: sbatch, scancel, scontrol, sacct."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from alignment.config.errors import UserError

ENDED_BADLY = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
OVER = ("COMPLETED", *ENDED_BADLY)
NOTHING = ("", "(null)", "None", "Unknown", "None assigned")  # how Slurm writes that there is no value
SACCT_FIELDS = ("State", "ExitCode", "NodeList", "Elapsed", "Timelimit")


@dataclass(frozen=True, slots=True)
class JobState:
    """What Slurm says of a job; empty where it says nothing."""

    state: str
    """PENDING, RUNNING, COMPLETED, FAILED, ..."""
    reason: str = ""
    exit_code: str = ""
    """As Slurm writes it, code:signal."""
    nodes: str = ""
    run_time: str = ""
    time_limit: str = ""
    restarts: int = 0

    def is_over(self) -> bool:
        return self.state in OVER


def require_sbatch() -> None:
    """Raises:
    UserError: there is no sbatch here.
    """
    _require("sbatch")


def submit(script: Path, after: list[str]) -> str:
    """The id of the new job, which starts when all jobs of `after` have ended well, and is cancelled if one has not.

    Raises:
        UserError: there is no sbatch, or it refuses; with its own words.
    """
    dependent = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    said = _called(["sbatch", "--parsable", *dependent, str(script)])
    return said.strip().splitlines()[-1].partition(";")[0]


def cancel(jobs: list[str]) -> None:
    if jobs:
        _called(["scancel", *jobs])


def find(job: str) -> JobState | None:
    """A job's state; None where Slurm has none: it forgets a job some time after its end.

    Raises:
        UserError: Slurm cannot be asked.
    """
    try:
        return read_scontrol(_called(["scontrol", "--oneliner", "show", "job", job]))
    except UserError as error:
        if "Invalid job id" not in str(error):
            raise
    return _accounted(job)


def _accounted(job: str) -> JobState | None:
    """From the accounting database, which not every cluster has."""
    if shutil.which("sacct") is None:
        return None
    try:
        words = ["sacct", "--allocations", "--noheader", "--parsable2", f"--format={','.join(SACCT_FIELDS)}"]
        return read_sacct(_called([*words, f"--jobs={job}"]))
    except UserError:
        return None


def read_scontrol(text: str) -> JobState:
    """One line of `scontrol --oneliner show job`, the first if there are more."""

    def value(key: str) -> str:
        found = re.search(rf"(?:^|\s){re.escape(key)}=(\S*)", text.splitlines()[0])
        return "" if found is None or found[1] in NOTHING else found[1]

    return JobState(
        state=value("JobState"),
        reason=value("Reason"),
        exit_code=value("ExitCode"),
        nodes=value("NodeList"),
        run_time=value("RunTime"),
        time_limit=value("TimeLimit"),
        restarts=int(value("Restarts") or 0),
    )


def read_sacct(text: str) -> JobState | None:
    """The first line of `sacct --parsable2` with SACCT_FIELDS; of a state, such as `CANCELLED by 7`, the first word."""
    if not text.strip():
        return None
    state, *rest = ("" if word in NOTHING else word for word in text.splitlines()[0].split("|"))
    exit_code, nodes, run_time, time_limit = rest
    return JobState(state.split()[0], "", exit_code, nodes, run_time, time_limit)


def _called(words: list[str]) -> str:
    """What a command prints; its own error where it fails."""
    program = words[0]
    _require(program)
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    if ran.returncode == 0:
        return ran.stdout
    lines = [line.removeprefix(f"{program}: ").removeprefix("error: ") for line in ran.stderr.splitlines()]
    raise UserError(f"{program}: {'; '.join(lines) or f'exit code {ran.returncode}'}")


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise UserError(f"{program} is not in PATH: this is no machine of a Slurm cluster")

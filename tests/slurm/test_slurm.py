"""What Slurm's commands print, read; and what is said where they are missing or fail."""

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.config.errors import UserError
from alignment.slurm import commands
from alignment.slurm.commands import JobState, read_sacct, read_scontrol

# As Slurm 22.05 prints them, shortened.
RUNNING = (
    "JobId=1 JobName=tiny_dpo UserId=me(7) Account=(null) QOS=(null) JobState=RUNNING Reason=None Dependency=(null) "
    "Requeue=1 Restarts=2 BatchFlag=1 ExitCode=0:0 RunTime=00:00:02 TimeLimit=00:10:00 TimeMin=N/A ReqNodeList=(null) "
    "ExcNodeList=(null) NodeList=a[1-2] BatchHost=a1 NumNodes=2 Command=/data/a JobState=b/job.sbatch\n"
)
PENDING = (
    "JobId=2 ArrayJobId=2 ArrayTaskId=0-2 JobState=PENDING Reason=JobHeldUser Restarts=0 ExitCode=0:0 "
    "RunTime=00:00:00 TimeLimit=UNLIMITED NodeList= BatchHost= \nJobId=3 JobState=FAILED\n"
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`fake("sbatch", "echo 12")`: a command of Slurm that does this; there is no other one."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(name: str, body: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    return write


def test_scontrol_is_read() -> None:
    assert read_scontrol(RUNNING) == JobState("RUNNING", "", "0:0", "a[1-2]", "00:00:02", "00:10:00", 2)
    assert read_scontrol(PENDING) == JobState("PENDING", "JobHeldUser", "0:0", "", "00:00:00", "UNLIMITED", 0)


def test_sacct_is_read() -> None:
    assert read_sacct("FAILED|3:0|a[1-2]|00:00:02|00:10:00\n") == JobState(
        "FAILED", "", "3:0", "a[1-2]", "00:00:02", "00:10:00"
    )
    assert read_sacct("CANCELLED by 7|0:0|None assigned|00:00:00|UNLIMITED\n") == JobState(
        "CANCELLED", "", "0:0", "", "00:00:00", "UNLIMITED"
    )
    assert read_sacct("\n") is None


def test_which_states_are_the_end() -> None:
    assert not any(JobState(state).is_over() for state in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"))
    assert all(JobState(state).is_over() for state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"))


def test_submit_passes_on_what_it_waits_for(fake: Callable[..., None], tmp_path: Path) -> None:
    fake("sbatch", f'echo "$@" > {tmp_path}/asked; echo "12;cluster"')
    assert commands.submit(Path("job.sbatch"), []) == "12"
    assert (tmp_path / "asked").read_text() == "--parsable job.sbatch\n"
    commands.submit(Path("job.sbatch"), ["3", "4"])
    expected = "--parsable --dependency=afterok:3:4 --kill-on-invalid-dep=yes job.sbatch\n"
    assert (tmp_path / "asked").read_text() == expected


def test_a_refusal_is_told_in_sbatchs_words(fake: Callable[..., None]) -> None:
    fake("sbatch", 'echo "sbatch: error: invalid partition specified: x" >&2; echo "sbatch: error: failed" >&2; exit 1')
    with pytest.raises(UserError, match=r"^sbatch: invalid partition specified: x; failed$"):
        commands.submit(Path("job.sbatch"), [])
    fake("sbatch", "exit 7")
    with pytest.raises(UserError, match=r"^sbatch: exit code 7$"):
        commands.submit(Path("job.sbatch"), [])


def test_a_machine_without_slurm(fake: Callable[..., None]) -> None:
    for call in (commands.require_sbatch, lambda: commands.find("1"), lambda: commands.cancel(["1"])):
        with pytest.raises(UserError, match="is not in PATH: this is no machine of a Slurm cluster"):
            call()
    commands.cancel([])


def test_a_job_is_looked_for_in_the_accounts_where_the_controller_forgot_it(fake: Callable[..., None]) -> None:
    fake("scontrol", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert commands.find("1") is None
    fake("sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    assert commands.find("1") is None
    fake("sacct", 'echo "COMPLETED|0:0|a1|00:00:02|00:10:00"')
    assert commands.find("1") == JobState("COMPLETED", "", "0:0", "a1", "00:00:02", "00:10:00")
    fake("scontrol", 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
    with pytest.raises(UserError, match="Unable to contact slurm controller"):
        commands.find("1")

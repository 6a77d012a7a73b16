"""A real Slurm cluster of two nodes on this machine, started once and stopped at the end."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignment.slurm import commands
from alignment.slurm.folder import job_of

REPOSITORY = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("alignment"))
LIMIT_S = 180.0


@dataclass
class Cluster:
    """`SLURM_CONF` of the environment points to it; `folder` is where a test submits from."""

    folder: Path

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([COMMAND, *words], cwd=self.folder, capture_output=True, text=True, check=False)

    def submit(self, *words: str) -> str:
        ended = self.command("submit", *words, "cluster=slurm")
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def wait(
        self, run: str, *, until: Callable[[commands.JobState], bool] = commands.JobState.is_over
    ) -> commands.JobState:
        """The state of a run's job once it is `until`; by default, over."""
        job, end = job_of(self.folder / run), time.monotonic() + LIMIT_S
        assert job is not None
        while time.monotonic() < end:
            state = commands.find(job)
            assert state is not None
            if until(state):
                return state
            assert not state.is_over(), (state, self.log(run))
            time.sleep(0.2)
        raise AssertionError(f"{run}: {state} after {LIMIT_S} s; {self.log(run)}")

    def start_requeued(self, run: str) -> None:
        """A job that was put back waits two minutes; here, until what is left of it is gone. A node refuses one that
        comes in the second in which it was killed ("Job credential revoked"), and the job is FAILED."""
        job = job_of(self.folder / run)
        self.wait(run, until=lambda state: state.restarts == 1 and state.state == "PENDING" and _all_idle())
        time.sleep(2)
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)

    def log(self, run: str) -> str:
        """What the job's processes said."""
        return "".join(path.read_text() for path in sorted((self.folder / run / "logs").glob("*.log")))

    def story(self, run: str) -> str:
        """That, and what Slurm's controller and nodes said of the job: why a test failed."""
        job, folder = job_of(self.folder / run), Path(os.environ["SLURM_CONF"]).parents[1] / "log"
        lines = [line for path in sorted(folder.glob("slurm*.log")) for line in path.read_text().splitlines()]
        word = re.compile(rf"\b{job}\b")
        return "\n".join([self.log(run), *(line for line in lines if word.search(line))])


def _all_idle() -> bool:
    said = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%T"], capture_output=True, text=True, check=True)
    return set(said.stdout.split()) == {"idle"}


def scripts() -> Path | None:
    """The folder of `up.sh` and `down.sh`, which start and stop a cluster: ALIGNMENT_SLURM, or beside the checkout."""
    named = [Path(os.environ["ALIGNMENT_SLURM"])] if "ALIGNMENT_SLURM" in os.environ else []
    places = [*named, REPOSITORY / "shared" / "slurm", REPOSITORY.parent / "shared" / "slurm"]
    return next((place for place in places if (place / "up.sh").is_file()), None)


@pytest.fixture(scope="session")
def base() -> Iterator[Path]:
    """The folder of a running cluster; everybody may look into it, for munge insists on that."""
    found = scripts()
    if found is None:
        pytest.skip("no slurm/up.sh, which starts a cluster, in ALIGNMENT_SLURM or in ../shared")
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {missing[0]} in PATH")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        started = subprocess.run([found / "up.sh", folder], capture_output=True, text=True, timeout=60)
        if started.returncode:
            pytest.skip(f"the cluster does not start: {started.stderr.strip()}")
        yield folder
    finally:
        subprocess.run([found / "down.sh", folder], capture_output=True, timeout=60)
        shutil.rmtree(folder)


@pytest.fixture
def cluster(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """It has no job when the test begins, and none when it has ended."""
    monkeypatch.setenv("SLURM_CONF", str(base / "etc" / "slurm.conf"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield Cluster(tmp_path)
    subprocess.run(["scancel", "--user", str(os.getuid())], check=True)
    while subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout:
        time.sleep(0.2)

"""One process writes a folder; a dead owner does not hold it, wherever it died."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from alignment.runs import claim as claims
from alignment.runs.claim import FolderInUse, Owner, claim, require_free, this_process
from alignment.runs.folder import RunFolder

HOLD = """
import sys, time
from pathlib import Path
from alignment.runs.claim import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that holds `out`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def left(folder: Path, owner: Owner) -> None:
    folder.mkdir()
    RunFolder(folder).owner.write_text(json.dumps({"owner": asdict(owner), "beat": 3}))


@pytest.fixture
def elsewhere() -> Owner:
    return replace(this_process(), host="node7", boot="another", pid=12, since="2026-01-31 12:00:00")


def test_a_second_process_is_told_who_has_the_folder(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FolderInUse) as refused, claim(out):
        pass
    line = rf"output_dir is in use by process {holder.pid} on {socket.gethostname()}, since 20"
    assert str(refused.value).startswith(line) and str(refused.value).endswith(f", got {str(out)!r}")
    with pytest.raises(FolderInUse):
        require_free(out)
    assert json.loads(RunFolder(out).owner.read_text())["owner"]["pid"] == holder.pid, (
        "whoever is refused changes nothing"
    )


def test_a_killed_owner_holds_nothing_and_leaves_nothing(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert RunFolder(tmp_path / "out").owner.exists()
    with claim(tmp_path / "out"):
        assert json.loads(RunFolder(tmp_path / "out").owner.read_text())["owner"]["pid"] == os.getpid()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_is_renamed_or_removed_while_it_is_held(tmp_path: Path) -> None:
    with claim(tmp_path / "a"):
        (tmp_path / "a").rename(tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []
    with claim(tmp_path / "c"):
        RunFolder(tmp_path / "c").owner.unlink()
        (tmp_path / "c").rmdir()
    assert not (tmp_path / "c").exists()


def test_an_owner_that_ends_while_another_comes_is_not_locked_after_its_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that the newcomer has opened is removed before it locks it: the lock would be one on nothing."""
    lock, times = claims.lock_file, []

    def late(descriptor: int) -> bool:
        if not times:
            RunFolder(tmp_path / "out").owner.unlink()
        times.append(descriptor)
        return lock(descriptor)

    monkeypatch.setattr(claims, "lock_file", late)
    with claim(tmp_path / "out"):
        assert len(times) == 2
        with RunFolder(tmp_path / "out").owner.open("r+") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_S", 0.02)
    monkeypatch.setattr(claims, "LEASE_S", 0.4)


@pytest.mark.usefixtures("quickly")
def test_a_silent_owner_elsewhere_is_dead(tmp_path: Path, elsewhere: Owner, capsys: pytest.CaptureFixture[str]) -> None:
    left(tmp_path / "out", elsewhere)
    with claim(tmp_path / "out"):
        pass
    assert "was left by process 12 on node7, since 2026-01-31 12:00:00: " in capsys.readouterr().out


@pytest.mark.usefixtures("quickly")
def test_an_owner_elsewhere_whose_file_changes_is_alive(tmp_path: Path, elsewhere: Owner) -> None:
    """Where no lock reaches from one machine to the other, as on some cluster file systems."""
    out = tmp_path / "out"
    left(out, elsewhere)
    beats = "import sys, time\nfor n in range(9): time.sleep(.1); open(sys.argv[1], 'w').write(sys.argv[2] % n)"
    text = json.dumps({"owner": asdict(elsewhere), "beat": "?"}).replace('"?"', "%d")
    with subprocess.Popen([sys.executable, "-c", beats, str(RunFolder(out).owner), text]) as other:
        with pytest.raises(FolderInUse, match="process 12 on node7"), claim(out):
            pass
        other.kill()


@pytest.mark.usefixtures("quickly")
def test_without_locks_the_beat_is_what_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "lock_file", lambda descriptor: False)
    with claim(tmp_path / "out"):
        time.sleep(0.1)
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} "), claim(tmp_path / "out"):
            pass


def test_a_requeued_job_does_not_wait_for_its_former_self(
    tmp_path: Path, elsewhere: Owner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left(tmp_path / "out", replace(elsewhere, job="77", restarts=0))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with claim(tmp_path / "out"):
        assert json.loads(RunFolder(tmp_path / "out").owner.read_text())["owner"]["restarts"] == 1
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        with (
            pytest.raises(ValueError, match=r"^output_dir must be a folder that can be made and written \("),
            claim(place),
        ):
            pass

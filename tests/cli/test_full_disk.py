"""Runs on disks that are full or become so: one line, exit code 2, and nothing half written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
WORDS = ["log.progress=false", "data.train.limit=64", "data.eval.limit=8", "batch.size=8", "train.eval_every=0"]
WHY = "No space left on device (ENOSPC); what was saved before is kept"


def run(*words: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alignment", "run", *words, *WORDS]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_in_the_background_that_fills_the_disk(processes: int, disk: Path) -> None:
    """It holds one of 16 MB and a part of the next one."""
    subprocess.run(["mount", "-o", "remount,size=18m", str(disk)], check=True)
    words = ["checkpoint.background=true", "checkpoint.every=2", "log.samples=8", f"output_dir={disk / 'run'}"]
    several = ["distributed=zero2", "launch.processes=2"] if processes == 2 else []
    ended = run("tiny_ppo", *words, *several, "train.max_steps=40", "generation.max_new_tokens=16")
    line = f"alignment: tiny_ppo: {disk / 'run' / 'checkpoints' / 'step-00000004'} cannot be written: {WHY}\n"
    assert (ended.returncode, ended.stderr) == (2, line), ended.stdout
    assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_model_that_fills_the_disk(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=120k", str(disk)], check=True)
    words = ["checkpoint.save_last=false", "checkpoint.every_minutes=0", f"output_dir={disk / 'run'}"]
    ended = run("tiny_reward", "train.max_steps=3", *words)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"alignment: tiny_reward: {disk / 'run' / 'model'} cannot be written: {WHY}\n",
    )
    assert not list(disk.glob("run/*.partial"))


def test_a_disk_that_is_full_before_the_run(disk: Path) -> None:
    subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'fill'}", "bs=1M"], capture_output=True, check=False)
    ended = run("tiny_reward", "train.max_steps=3", f"output_dir={disk / 'run'}")
    told = "output_dir must be a folder that can be made and written (No space left on device)"
    assert (ended.returncode, ended.stderr) == (2, f"alignment: tiny_reward: {told}, got {str(disk / 'run')!r}\n")
    assert os.listdir(disk) == ["fill"]


def test_a_run_whose_output_is_not_written_comes_to_its_end(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    ended = run("tiny_reward", "train.max_steps=3", f"output_dir={tmp_path / 'run'}", stdout=full)
    os.close(full)
    line = "alignment: the standard output cannot be written (No space left on device)\n"
    assert (ended.returncode, ended.stderr) == (0, line)
    assert (tmp_path / "run" / "finished.json").is_file() and (tmp_path / "run" / "model").is_dir()

"""A run that is killed at any moment, also in the middle of a save, and run again, ends as if nothing had happened."""

import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

ON_ROWS = ("dpo", "aot", "simpo", "cpo", "orpo", "kto", "reward", "reward_regression", "reward_process", "best")
ON_REPLIES = ("ppo", "grpo", "rloo", "reinforce_pp", "online_dpo")
RUNS = (*ON_ROWS, *ON_REPLIES)
WAITED, IN_BACKGROUND = ["checkpoint.background=false"], ["checkpoint.background=true"]
KILLS = [
    (name, number, WAITED) for name, number in [*((name, 0) for name in RUNS), ("dpo", 1), ("ppo", 1), ("best", 1)]
]
BESIDE = [("ppo", 0, IN_BACKGROUND), *(("best", number, IN_BACKGROUND) for number in (0, 1))]
MANY = [
    pytest.param(name, number, how, marks=pytest.mark.slow)
    for how in (WAITED, IN_BACKGROUND)
    for name in RUNS
    for number in range(3, 23)
]
OPTIMIZERS = [
    pytest.param(name, number, WAITED, marks=pytest.mark.slow) for name in ("muon", "adamw_8bit") for number in range(6)
]
DAMAGE: dict[str, Callable[[Path], Any]] = {
    "rank-00000.pt is cut short": lambda folder: cut(folder / "rank-00000.pt"),
    "rank-00000.pt has changed": lambda folder: flip(folder / "rank-00000.pt"),
    "rank-00000.pt is missing": lambda folder: (folder / "rank-00000.pt").unlink(),
    "manifest.json is missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json has changed": lambda folder: flip(folder / "manifest.json", b'"step": 5', b'"step": 7'),
    "manifest.json cannot be read": lambda folder: cut(folder / "manifest.json"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path, old: bytes | None = None, new: bytes = b"") -> None:
    """One bit in the middle; or the bytes given."""
    data = bytearray(path.read_bytes())
    if old is None:
        data[len(data) // 2] ^= 1
    else:
        assert old in data
        data = data.replace(old, new)
    path.write_bytes(data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("name", "number", "how"), [*KILLS, *BESIDE, *MANY, *OPTIMIZERS])
def test_killed_twice_and_run_again(
    name: str, number: int, how: list[str], runner: Any, whole: Any, command: Any, assert_same: Any, tmp_path: Path
) -> None:
    """Once at a random touch of a file, most of which are within saves, and once at a random time. Number 0, the only
    one of most runs that is not slow, is in the middle: there is something saved, and something left to do. Saved in
    the background or not, it ends as the run that was not."""
    drawn = random.Random(f"{name} {number}")
    unbroken, folder = whole(name), tmp_path / "run"
    quarter = unbroken.touches // 4
    at = drawn.randint(quarter, 3 * quarter) if number == 0 else drawn.randint(1, unbroken.touches)
    words = command(name, *how)
    first = runner(words, folder, at=at)
    assert first.code == -signal.SIGKILL
    second = runner(words, folder, after_s=drawn.uniform(0.1, 0.9) * unbroken.seconds)
    assert second.code in (0, -signal.SIGKILL), second.said
    last = runner(words, folder)
    assert last.code == 0, last.said
    assert_same(folder / "out", unbroken.folder)


def test_killed_while_the_reference_is_computed(
    runner: Any, whole: Any, command: Any, assert_same: Any, tmp_path: Path
) -> None:
    """When none of its tables is kept, when that of the rows held out is, and when both are."""
    unbroken, folder, more = whole("dpo"), tmp_path / "run", ("reference.cache=true", "reference.folder=kept")
    seen: list[int] = []
    for at in count(1):
        shutil.rmtree(folder, ignore_errors=True)
        ended = runner(command("dpo", *more), folder, at=at)
        assert ended.code == -signal.SIGKILL, ended.said
        whole_ones = len(list(folder.glob("kept/*.safetensors")))
        if whole_ones in seen or not (folder / "kept").exists():
            continue
        seen.append(whole_ones)
        last = runner(command("dpo", *more), folder)
        assert last.code == 0, last.said
        assert_same(folder / "out", unbroken.folder)
        if whole_ones == 2:
            break
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("why", DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    why: str, runner: Any, whole: Any, command: Any, assert_same: Any, tmp_path: Path
) -> None:
    unbroken, folder = whole("dpo"), tmp_path / "run"
    runner(command("dpo"), folder)
    (folder / "out" / "finished.json").unlink()
    DAMAGE[why](folder / "out" / "checkpoints" / "step-00000005")
    last = runner(command("dpo"), folder)
    assert last.code == 0, last.said
    assert f"out/checkpoints/step-00000005 is skipped: {why}" in last.said
    assert "going on from out/checkpoints/step-00000004" in last.said
    assert names(folder / "out" / "checkpoints") == ["step-00000004", "step-00000005", "step-00000005.bad"]
    assert_same(folder / "out", unbroken.folder)


def test_no_good_checkpoint_is_no_new_start(runner: Any, command: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runner(command("dpo"), folder)
    (folder / "out" / "finished.json").unlink()
    for step in (4, 5):
        cut(folder / "out" / "checkpoints" / f"step-0000000{step}" / "rank-00000.pt")
    last = runner(command("dpo"), folder)
    assert last.code == 2
    line = "checkpoint.resume=auto needs a good checkpoint (checkpoint.resume=never starts over), got 2 in"
    assert line in last.said.splitlines()[-1]
    assert runner(command("dpo", "checkpoint.resume=never"), folder).code == 0


@pytest.fixture
def disk(whole: Any, tmp_path: Path) -> Iterator[Path]:
    """A disk that holds two checkpoints and little more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    checkpoint = whole("dpo").folder / "checkpoints" / "step-00000005" / "rank-00000.pt"
    size = f"size={int(2.6 * checkpoint.stat().st_size)}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_no_good_checkpoint(
    runner: Any, whole: Any, command: Any, assert_same: Any, disk: Path
) -> None:
    folder = disk / "run"
    full = runner(command("dpo"), folder)
    assert full.code == 2
    line = "out/checkpoints/step-00000003 cannot be written: No space left on device (ENOSPC); what was saved before"
    assert line in full.said.splitlines()[-1]
    assert names(folder / "out" / "checkpoints") == ["step-00000001", "step-00000002"]
    subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
    last = runner(command("dpo"), folder)
    assert last.code == 0 and "going on from out/checkpoints/step-00000002" in last.said, last.said
    assert_same(folder / "out", whole("dpo").folder)


def test_a_limit_on_files_loses_no_good_checkpoint(
    runner: Any, whole: Any, command: Any, assert_same: Any, tmp_path: Path
) -> None:
    unbroken, folder = whole("dpo"), tmp_path / "run"
    assert runner(command("dpo"), folder, at=unbroken.touches // 2).code == -signal.SIGKILL
    before = [name for name in names(folder / "out" / "checkpoints") if not name.endswith(".partial")]
    assert before
    limited = runner(command("dpo"), folder, limit=100_000)
    assert limited.code == 2
    assert "cannot be written: File too large (EFBIG)" in limited.said.splitlines()[-1]
    assert names(folder / "out" / "checkpoints") == before
    assert runner(command("dpo"), folder).code == 0
    assert_same(folder / "out", unbroken.folder)

"""Runs that go on with other processes, another ZeRO stage or less at a time, and one whose disk is full."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

TOLERANCE = 1e-5
LIVE = "generation/live_fraction"  # padding is not the same in other batches
ONE, TWO = ("distributed.zero=null",), ("launch.processes=2", "distributed.zero=1")
CASES = [
    ("dpo", (*ONE, "batch.max_tokens=150", "model.gradient_checkpointing=true"), 7),
    ("ppo", ("distributed.zero=1", "batch.max_tokens=150", "generation.batch_size=3"), 9),
    pytest.param("dpo", ("distributed.zero=3",), 7, marks=pytest.mark.slow),
    pytest.param("dpo", ("distributed.zero=0",), 8, marks=pytest.mark.slow),
    pytest.param("dpo", TWO, 7, marks=pytest.mark.slow),
    pytest.param("ppo", ONE, 7, marks=pytest.mark.slow),
    pytest.param("ppo", TWO, 8, marks=pytest.mark.slow),
]


def left_at(step: int, run: Path, folder: Path) -> Path:
    """A copy of a finished run as it was after `step` steps."""
    copy = folder / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("finished.json", "model"))
    for path in (copy / "checkpoints").iterdir():
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)
    return copy


def ended(running: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = running.communicate(timeout=300)
    return running.returncode, out, err


def going_on(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("going on")]


def assert_near(one: Path, other: Path, rows: Any, weights: Any) -> None:
    for mine, theirs in zip(rows(one), rows(other), strict=True):
        assert mine.pop(LIVE, None) is None or theirs.pop(LIVE) > 0
        assert mine == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


@pytest.mark.parametrize(("name", "how", "step"), CASES)
def test_a_run_goes_on_in_other_processes(
    name: str, how: tuple[str, ...], step: int, start: Any, whole: Any, rows: Any, weights: Any, tmp_path: Path
) -> None:
    """Stopped between two rows of the log, or after one: the same rows in the same steps, and nothing counted twice."""
    unbroken, stage = whole(name), {"dpo": 2, "ppo": 3}[name]
    run = left_at(step, unbroken, tmp_path)
    code, out, err = ended(start(name, tmp_path, *how))
    assert code == 0, err
    saved = f"run/checkpoints/step-{step:08d} (saved by 2 processes under distributed.zero={stage})"
    assert going_on(out) == [f"going on from {saved}"]
    assert_near(run, unbroken, rows, weights)
    assert rows(run)[: step // 2] == rows(unbroken)[: step // 2]  # not written again


def test_a_run_goes_on_where_processes_share_rows(
    start: Any, whole: Any, rows: Any, weights: Any, tmp_path: Path
) -> None:
    """What each had counted of rows of its own is counted with what one of the two counts of theirs."""
    run = left_at(7, whole("dpo"), tmp_path)
    words = ("launch.processes=2", "distributed.zero=2", "distributed.sequence_parallel=2")
    code, out, err = ended(start("dpo", tmp_path, *words))
    assert code == 0, err
    assert going_on(out) == ["going on from run/checkpoints/step-00000007"]
    assert_near(run, whole("dpo"), rows, weights)


@pytest.mark.slow
def test_from_one_process_to_two(start: Any, rows: Any, weights: Any, tmp_path: Path) -> None:
    code, _, err = ended(start("dpo", tmp_path / "one", *ONE))
    assert code == 0, err
    unbroken = tmp_path / "one" / "run"
    run = left_at(9, unbroken, tmp_path / "two")
    code, out, err = ended(start("dpo", tmp_path / "two", *TWO))
    assert code == 0, err
    (line,) = going_on(out)
    assert line.endswith("step-00000009 (saved by 1 process under distributed.zero=null)")
    assert_near(run, unbroken, rows, weights)


@pytest.mark.parametrize("name", ["dpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_full_disk_under_two_processes_loses_no_good_checkpoint(
    name: str, start: Any, whole: Any, assert_same: Any, disk: Path
) -> None:
    """There is room for the checkpoint of step 11, and for some of the one after it."""
    unbroken = whole(name)
    run = left_at(10, unbroken, disk)
    for path in (run / "checkpoints").iterdir():
        if path.name != "step-00000010":
            shutil.rmtree(path)
    parts = (run / "checkpoints" / "step-00000010").glob("rank-*.pt")
    room = shutil.disk_usage(disk).used + int(1.5 * sum(path.stat().st_size for path in parts))
    subprocess.run(["mount", "-o", f"remount,size={room}", str(disk)], check=True)
    code, _, err = ended(start(name, disk))
    why = "No space left on device (ENOSPC); what was saved before is kept"
    assert err == f"alignment: tiny_{name}: run/checkpoints/step-00000012 cannot be written: {why}\n"
    assert code == 2
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000010", "step-00000011"]
    subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
    code, out, err = ended(start(name, disk))
    assert code == 0, err
    assert going_on(out) == ["going on from run/checkpoints/step-00000011"]
    assert_same(run, unbroken)

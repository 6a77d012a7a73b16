"""`scripts/gpu.py` where there is no GPU: each of its parts runs, and what fails is in the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BROKEN = """
import pytest

@pytest.mark.gpu
def test_that_fails():
    assert False

@pytest.mark.gpu
def test_that_passes():
    pass
"""


@pytest.mark.slow
def test_without_a_gpu(shared: Path, tmp_path: Path) -> None:
    tests = tmp_path / "test_broken_here.py"
    tests.write_text(BROKEN)
    data = shared / "data" / "hh_harmless.train.jsonl.gz"
    command = [sys.executable, REPOSITORY / "scripts" / "gpu.py", "--device", "cpu", "--data", data, "--tests", tests]
    ended = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr  # for the test that fails
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["tests"]["passed"] == 1 and len(found["tests"]["failed"]) == 1
    assert [row["method"] for row in found["benchmark"]["rows"]] == ["dpo", "sft"]
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "1 passed, 0 skipped, 1 failed" in page and "| dpo |" in page and "test_that_fails" in page


def tried(*choice: str) -> tuple[str, str]:
    """What pytest says of the tests marked `gpu` on a CPU but those of CUDA's own kernels: its last line, and all."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-o", "addopts=-q --import-mode=importlib"]
    environment = {**os.environ, "GPU_STAND_IN": "1", "CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""}
    ended = subprocess.run(
        [*command, *choice], capture_output=True, text=True, check=False, env=environment, cwd=REPOSITORY
    )
    return ended.stdout.splitlines()[-1], ended.stdout


def test_what_a_gpu_is_asked_can_be_asked() -> None:
    """One of each kind of run; what they find on a CPU is found by other tests too."""
    one_of_each = "(few_steps and float32-grpo) or zero_3[dpo]"
    last, said = tried("-k", one_of_each)
    assert last.startswith("2 passed"), said


@pytest.mark.slow
def test_all_that_a_gpu_is_asked_can_be_asked() -> None:
    last, said = tried()
    assert "passed" in last and "failed" not in last and "error" not in last, said


def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    command = [sys.executable, REPOSITORY / "scripts" / "gpu.py", "--data", "PAIRS", "--out", tmp_path / "out"]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 2 and "there is no GPU here" in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("row", ['{"prompt": "a", "chosen": "b", "rejected": "c"}', '{"prompt": "a"}', "a"])
def test_rows_that_are_not_the_benchmark_s_are_told_before_anything_runs(row: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(f"{row}\n" * 300)
    command = [sys.executable, REPOSITORY / "scripts" / "gpu.py", "--device", "cpu", "--data", "pairs.jsonl"]
    ended = subprocess.run([*command, "--out", "out"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 2 and "--data must be pairs in the form of HH-RLHF: " in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_file_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    command = [sys.executable, REPOSITORY / "scripts" / "gpu.py", "--device", "cpu", "--data", "PAIRS", "--out", "out"]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert ended.returncode == 2 and f"--data must be a file of pairs, got 'PAIRS' in {tmp_path}" in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "pairs").touch()
    command = [sys.executable, REPOSITORY / "scripts" / "gpu.py", "--device", "cpu", "--data", "pairs"]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}
    asked = {"capture_output": True, "text": True, "check": False, "env": environment, "cwd": tmp_path}
    ended = subprocess.run([*command, "--out", "pairs/out"], **asked)
    assert ended.returncode == 2 and "--out must be a folder that can be written" in ended.stderr

"""Where these tests run: on the GPU that torch sees. With GPU_STAND_IN in the environment those that ask for none of
CUDA's own kernels run on a CPU, which tries the tests themselves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

IS_STAND_IN = bool(os.environ.get("GPU_STAND_IN"))
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def device() -> str:
    """`distributed.device` of a run."""
    if not torch.cuda.is_available() and not IS_STAND_IN:
        pytest.skip("torch sees no GPU")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def processes(device: str) -> int:
    """As many as there are GPUs; two on a CPU."""
    if device == "cpu":
        return 2
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU is no group")
    return torch.cuda.device_count()


@pytest.fixture
def run(device: str) -> Run:
    """`run(folder, "tiny_dpo", ...)`: the rows that the run has logged."""

    def call(folder: Path, *words: str) -> list[dict[str, Any]]:
        command = [str(Path(sys.executable).with_name("alignment")), "run", *words]
        where = [f"distributed.device={device}", f"output_dir={folder}", "log.progress=false"]
        ran = subprocess.run([*command, *where], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-4000:]
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    return call

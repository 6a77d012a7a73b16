"""Replies from a server on the machine's GPUs: one of its own, to which weights go over NCCL, and one that sleeps on
the GPU of the run.

VLLM_PYTHON in the environment is a Python that has vLLM; else the test's own is asked. On a CPU a stand-in answers
(../generation/fake_vllm.py), which tries the tests alone.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu
FAKE = Path(__file__).parents[1] / "generation" / "fake_vllm.py"
SMALL = ("data.train.limit=64", "data.eval.limit=8", "train.max_steps=4", "train.eval_every=2", "log.every=1")


@pytest.fixture
def python(device, tmp_path, monkeypatch):
    """The server's."""
    if device == "cpu":
        fake = tmp_path / "python"
        fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
        fake.chmod(0o755)
        monkeypatch.setenv("FAKE_VLLM_NOTE", str(tmp_path / "note.json"))
        return str(fake)
    found = os.environ.get("VLLM_PYTHON", "" if find_spec("vllm") is None else sys.executable)
    if not found:
        pytest.skip("no vLLM: neither VLLM_PYTHON nor this Python has one")
    return found


@pytest.fixture
def served(python, run, tmp_path):
    """`served("tiny_ppo", ...)`: the rows of a run that starts a server on a policy that has learned a little."""
    run(tmp_path / "sft", "tiny_sft", "train.max_steps=20", "train.eval_every=0")
    own = ("model=pretrained", f"model.path={tmp_path / 'sft' / 'model'}", "generation.engine=vllm", "launch.vllm=1")
    memory = "generation.vllm.flags=[--gpu-memory-utilization=0.3]"

    def call(recipe, *words):
        return run(tmp_path / "run", recipe, *own, memory, f"generation.vllm.python={python}", *SMALL, *words)

    return call


def over_nccl(device, gpus):
    """The words for it, which a CPU's stand-in does without."""
    if device == "cpu":
        return ()
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"{gpus - 1} of the run's processes and a server are {gpus} GPUs")
    if find_spec("vllm") is None:
        pytest.skip("over NCCL the run's own Python needs vLLM too")
    return ("generation.vllm.transfer=nccl",)


def require_like_minded(rows, device):
    """Weights that did not arrive would make a difference of nats; other kernels make some hundredths."""
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    if device == "cuda":  # the stand-in's log-probs are made up
        assert all(0 < row["generation/mismatch"] < 0.1 for row in rows)


def test_weights_go_over_nccl_to_a_server_of_its_own(served, device):
    require_like_minded(served("tiny_ppo", *over_nccl(device, 2)), device)


@pytest.mark.parametrize("zero", [1, 3])
def test_weights_of_two_processes_go_over_nccl(zero, served, device):
    words = (*over_nccl(device, 3), f"distributed.zero={zero}", "launch.processes=2")
    require_like_minded(served("tiny_ppo", *words), device)


@pytest.mark.parametrize("task", ["ppo", "grpo", "online_dpo"])
def test_a_server_sleeps_on_the_gpu_of_the_run(task, served, device):
    asleep = () if device == "cpu" else ("generation.vllm.sleep=true",)  # which the config refuses without a GPU
    require_like_minded(served(f"tiny_{task}", *asleep), device)

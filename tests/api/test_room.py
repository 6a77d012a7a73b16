"""A run that has no room whatever its passes take, and one that runs out of memory on its way."""

import errno
import os
from pathlib import Path

import pytest

import alignment
from alignment.config.errors import ConfigError
from alignment.tasks import room

SMALL = {
    "data": {"train": {"limit": 16}, "eval": {"limit": 2}},
    "train": {"max_steps": 1, "eval_every": 0, "warmup_steps": 0},
    "batch": {"size": 4, "max_tokens": 1024},
    "log": {"progress": False},
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    run = alignment.run("tiny_sft", output_dir="sft", **SMALL)
    assert run.model is not None
    return run.model


def number_of(model: Path) -> int:
    return sum(file.stat().st_size for file in model.glob("*.safetensors")) // 4


def test_what_cannot_fit_is_refused_before_anything_is_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four numbers of four bytes for each weight: itself, its gradient, two moments."""
    needs = 16 * number_of(model)
    settings = {**SMALL, "model": {"path": str(model)}}
    monkeypatch.setattr(room, "total_memory", lambda _: needs - 1)
    rule = r"weights, gradients and optimizer take at least \d.*, and this machine has \d.*`alignment plan` in place"
    with pytest.raises(ConfigError, match=rule):
        alignment.run("tiny_dpo", output_dir="out", **settings)
    assert not Path("out").exists()
    monkeypatch.setattr(room, "total_memory", lambda _: needs)
    assert alignment.run("tiny_dpo", output_dir="out", **settings).model is not None


def test_adapters_need_room_for_their_base_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "total_memory", lambda _: 4 * number_of(model))
    settings = {**SMALL, "model": {"path": str(model), "lora": {"rank": 2}}}
    assert alignment.run("tiny_dpo", output_dir="out", **settings).model is not None


def test_all_roles_are_in_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of PPO the actor and the critic train, one after the other with its gradients, and the reference does not."""
    needs = (2 * 12 + 4 + 4) * number_of(model)
    monkeypatch.setattr(room, "total_memory", lambda _: needs - 1)
    settings = {**SMALL, "model": {"path": str(model)}, "generation": {"max_new_tokens": 4}}
    with pytest.raises(ConfigError, match="`alignment plan` in place of `alignment run` says"):
        alignment.run("tiny_ppo", output_dir="out", **settings)
    monkeypatch.setattr(room, "total_memory", lambda _: needs)
    assert alignment.run("tiny_ppo", output_dir="out", **settings).model is not None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_what_ran_out_of_memory_is_told_what_was_planned(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    from alignment.tasks import sft

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(sft, "run", fails)
    with pytest.raises(type(error)) as met:
        alignment.run("tiny_sft", output_dir="out", **SMALL)
    assert met.value is error
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("out of memory: "))
    assert "GB were planned, at the most learning, model.init (0.0" in line and " held + " in line
    assert line.endswith("`alignment plan out/config.yaml` says which settings take less")

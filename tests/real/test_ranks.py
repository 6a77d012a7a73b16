"""A pretrained model sharded among two processes (ZeRO 3) is trained as by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.real


def test_two_processes_are_one(hh: tuple[Path, Any], run: Callable[..., Any], real_model: Path) -> None:
    data = ["data=hh_rlhf", f"data.train.path={hh[0]}", f"batch.size={len(hh[1])}", "batch.max_tokens=200"]
    steps = ["train.epochs=null", "train.max_steps=1", "train.learning_rate=1e-5", "train.warmup_ratio=0"]
    how = ["model.gradient_checkpointing=false", "distributed.device=cpu"]
    words = ["orpo", f"model.path={real_model}", *data, *steps, *how]
    one = run(*words)
    two = run(*words, "launch.processes=2", "distributed.zero=3")
    for name in ("loss", "grad_norm", "rewards/margin"):
        assert [row[name] for row in two.rows] == pytest.approx([row[name] for row in one.rows], rel=1e-4, abs=1e-5)
    before, alone, shared = (load_file(f / "model.safetensors") for f in (real_model, one.model, two.model))
    assert alone.keys() == shared.keys()
    moved = torch.cat([(alone[name] - before[name]).flatten() for name in alone])
    apart = torch.cat([(alone[name] - shared[name]).flatten() for name in alone])
    assert moved.abs().max() > 5e-6
    # AdamW's first step goes by the gradient's sign, which rounding decides where the gradient is next to nothing.
    assert (apart.abs() > 1e-6).float().mean() < 0.01

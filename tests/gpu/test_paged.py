"""Optimizer states in pages, which CUDA moves between its memory and the machine's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignment.config.optimizer import OptimizerName
from alignment.config.train import TrainConfig
from alignment.training.optim import build_optimizer
from tests.training.test_paged import Net

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
WIDE = ["model.init.hidden_size=256", "model.init.intermediate_size=512"]  # matrices of 131,072 numbers
SMALL = [*WIDE, "data.train.limit=16", "data.eval.limit=4", "batch.size=8", "train.warmup_steps=0"]
SMALL += ["train.schedule=constant", "checkpoint.every=1", "distributed.precision=float32"]
SMALL += ["distributed.deterministic=true", "train.learning_rate=3e-3"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_it_learns_as_without_pages_and_goes_on_bit_for_bit(run: Callable[..., Any], tmp_path: Path) -> None:
    words = ["tiny_dpo", *SMALL, "train.optimizer=paged_adamw_8bit"]
    whole = run(tmp_path / "whole", *words, "train.max_steps=4")
    for steps in (2, 4):
        cut = run(tmp_path / "cut", *words, f"train.max_steps={steps}")
    plain = run(tmp_path / "plain", "tiny_dpo", *SMALL, "train.optimizer=adamw_8bit", "train.max_steps=4")
    assert [row["loss"] for row in plain] == pytest.approx([row["loss"] for row in whole], rel=1e-4)
    assert [row["loss"] for row in cut] == [row["loss"] for row in whole]
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_states_are_in_pages_before_and_after_they_are_loaded() -> None:
    torch.manual_seed(0)
    model: Any = Net(torch.nn.Linear(400, 400)).cuda()
    config = TrainConfig(max_steps=4, optimizer=OptimizerName.paged_adamw_8bit)
    optimizer, _ = build_optimizer(model, config, num_steps=4, learning_rate=1e-3)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        state = optimizer.state[model[0].weight]
        assert all(vars(state[name])["is_paged"] for name in ("state1", "state2"))
        saved = torch.optim.Optimizer.state_dict(optimizer)
        kept = state["state1"].clone()
        optimizer.load_state_dict(saved)
        assert torch.equal(optimizer.state[model[0].weight]["state1"], kept)

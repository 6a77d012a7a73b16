"""What optimizers are counted to keep is what they keep."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.distributed import DistributedConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.optimizer import OptimizerName
from alignment.config.train import TrainConfig
from alignment.distributed.placement import WHOLE
from alignment.models.footprint import Role, Rows, counted_of, states_of_role
from alignment.models.held import States, held_of
from alignment.models.load import load_language_model, load_scalar_model
from alignment.models.optimizer_states import least_state_bytes, states_of
from alignment.training.optim import build_optimizer

TRAINS = [*((name, None) for name in OptimizerName), (OptimizerName.sgd, 0.9)]
LARGER = {"hidden_size": 64, "intermediate_size": 100}  # matrices that bitsandbytes keeps in 8 bits


def kept(model: Any, train: TrainConfig) -> int:
    """Bytes of the tensors that an optimizer has after a step, but for a table of 256 numbers that all share."""
    optimizer, _ = build_optimizer(model, train, num_steps=1, learning_rate=1e-3)
    for p in model.trained().values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    found = Optimizer.state_dict(optimizer)["state"]
    states = [(name, t) for state in found.values() for name, t in state.items() if isinstance(t, Tensor) and t.ndim]
    return sum(t.numel() * t.element_size() for name, t in states if not name.startswith("qmap"))


FIRST = {  # each optimizer once, and each kind of model; the other pairs with -m slow
    ("language model", OptimizerName.adamw),
    ("language model", OptimizerName.sgd),
    ("reward model", OptimizerName.adamw_8bit),
    ("reward model", OptimizerName.adafactor),
    ("reward model", OptimizerName.adamw_bf16),
    ("adapter", OptimizerName.muon),
    ("tied", OptimizerName.lion),
}
PAIRS = [
    pytest.param(kind, *train, marks=[] if (kind, train[0]) in FIRST else pytest.mark.slow)
    for kind in ("language model", "reward model", "adapter", "tied")
    for train in TRAINS
]


@pytest.mark.parametrize(("kind", "name", "momentum"), PAIRS)
def test_states_are_counted_as_they_are_kept(
    kind: str,
    name: OptimizerName,
    momentum: float | None,
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    train = TrainConfig(max_steps=1, optimizer=name, momentum=momentum)
    init = {**tiny_init, **LARGER, "tie_word_embeddings": kind == "tied"}
    settings = ModelConfig(init=init, lora=LoraConfig(rank=2 * (kind == "adapter")))
    load: Any = load_scalar_model if kind == "reward model" else load_language_model
    model = load(settings, tokenizer, WHOLE)
    found = kept(model, train)
    assert states_of(model, train) == found
    role = Role("model.init", settings, is_scalar=kind == "reward model", is_trained=True, train=train)
    counted = counted_of(role, Rows(512, 512), torch.float32, Layout.auto)  # few rows: few operations
    assert counted.states.kept == found and counted.states == states_of_role(role, torch.float32)
    assert least_state_bytes(train) * counted.num_trained <= found <= 8 * counted.num_trained


def test_stacked_experts_have_adamw_beside_muon() -> None:
    """Which is a matrix to neither, and three dimensions to the count."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.zeros(2, 4, 4))

        def trained(self) -> dict[str, nn.Parameter]:
            return dict(self.named_parameters())

    assert kept(Net(), TrainConfig(max_steps=1, optimizer=OptimizerName.muon)) == 2 * 4 * 32
    assert kept(Net(), TrainConfig(max_steps=1, optimizer=OptimizerName.adafactor)) == 4 * (8 + 8)


def test_states_are_shared_out_from_stage_1_on() -> None:
    for zero, share in ((None, 1), (0, 1), (1, 4), (3, 4)):
        held = held_of(16.0, 0.0, DistributedConfig(zero=zero), 4, is_gpu=True, states=States(8.0))
        assert held.moments == 8 / share
    assert held_of(16.0, 0.0, DistributedConfig(), 4, is_gpu=True).moments == 32

"""What the roles hold: counted by hand."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from alignment.rl import memory
from alignment.rl.memory import MemoryEstimate, estimate_memory


def test_four_models_apart() -> None:
    """12 weights each, two of them trained; 4 bytes a weight."""
    models = [nn.Linear(3, 4, bias=False) for _ in range(4)]
    actor, critic = (list(model.parameters()) for model in models[:2])
    want = MemoryEstimate(num_weights=48, num_trained=24, weights=192, gradients=48, optimizer=192, average=0)
    assert estimate_memory(models, actor=actor, critic=critic, average=False, zero=None) == want
    assert want.total == 432
    averaged = estimate_memory(models, actor=actor, critic=critic, average=True, zero=None)
    assert (averaged.average, averaged.total) == (48, 480)
    alone = estimate_memory(models[1:], actor=critic, critic=[], average=False, zero=None)
    assert (alone.num_weights, alone.num_trained, alone.optimizer) == (36, 12, 96)


def test_a_body_that_is_shared_is_there_once() -> None:
    """A frozen body of 12 weights; heads of 4 and of 8 that are trained."""
    body, small, large = nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False), nn.Linear(4, 2, bias=False)
    models = [nn.ModuleList([body, small]), nn.ModuleList([body, large]), body]
    want = MemoryEstimate(num_weights=24, num_trained=12, weights=96, gradients=32, optimizer=96, average=16)
    assert (
        estimate_memory(models, actor=list(small.parameters()), critic=[large.weight], average=True, zero=None) == want
    )


def test_the_moments_are_what_adamw_keeps_and_half_precision_counts_half() -> None:
    model = nn.Linear(300, 400, bias=False).bfloat16()
    optimizer = AdamW(model.parameters())
    found = estimate_memory([model], actor=list(model.parameters()), critic=[], average=False, zero=None)
    model(torch.ones(1, 300, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    kept = [t for state in optimizer.state.values() for t in state.values() if t.numel() > 1]
    assert found.optimizer == sum(t.numel() * t.element_size() for t in kept) == 2 * 2 * 300 * 400


@pytest.mark.parametrize(
    ("zero", "weights", "gradients", "optimizer", "average"),
    [(0, 192, 48, 192, 48), (1, 192, 48, 144, 48), (2, 192, 24, 144, 48), (3, 96, 24, 144, 24)],
)
def test_zero_divides_by_the_number_of_processes(
    zero: int, weights: int, gradients: int, optimizer: int, average: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two moments and the optimizer's own copy of 24 trained weights, halved: (96 + 192) / 2 = 144."""
    monkeypatch.setattr(memory, "size", lambda: 2)
    models = [nn.Linear(3, 4, bias=False) for _ in range(4)]
    actor, critic = (list(model.parameters()) for model in models[:2])
    found = estimate_memory(models, actor=actor, critic=critic, average=True, zero=zero)
    held_of_each = (found.weights, found.gradients, found.optimizer, found.average)
    assert held_of_each == (weights, gradients, optimizer, average)
    assert found.summary().endswith(" MB without activations in each of 2 processes")


def test_what_is_said() -> None:
    line = MemoryEstimate(4_000_000, 2_000_000, 16_000_000, 4_000_000, 16_000_000, 0).summary()
    assert line == (
        "roles: 4.00 million weights, 2.00 million trained; 16.0 MB weights, 4.0 MB gradients, "
        "16.0 MB optimizer: 36.0 MB without activations"
    )
    assert (
        "16.0 MB optimizer, 4.0 MB average: 40.0 MB"
        in MemoryEstimate(1, 1, 16_000_000, 4_000_000, 16_000_000, 4_000_000).summary()
    )

"""States in pages, with a CPU's memory for a GPU's: bitsandbytes' own code asks for pages and fetches them, and what
CUDA would do is noted. On a GPU: tests/gpu/test_paged.py."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes.functional as F
import pytest
import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch import Tensor, nn

from alignment.config.distributed import Device, DistributedConfig
from alignment.config.optimizer import MIN_PAGED, OptimizerName
from alignment.config.train import Schedule, TrainConfig
from alignment.distributed.engine import TorchEngine
from alignment.models.optimizer_states import all_states
from alignment.models.weight_kinds import weight_kinds
from alignment.training.optim import build_optimizer

WIDE = 320  # of a matrix of more numbers than MIN_PAGED
STEPS = 4


class Net(nn.Sequential):
    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Every page that is there, and those that were fetched, in order."""
    found = SimpleNamespace(made=[], fetched=[])
    own = Optimizer8bit.get_state_buffer

    def get_paged(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        page: Any = torch.full(shape, 77, dtype=dtype)
        page.is_paged, page.page_deviceid = True, device.index
        return page

    def get_state_buffer(self: Any, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        there = SimpleNamespace(device=torch.device("cuda", 0), shape=p.shape, numel=p.numel)
        is_large = self.is_paged and p.numel() >= MIN_PAGED
        return own(self, there, dtype) if is_large else torch.zeros_like(p, dtype=dtype)

    def prefetch_tensor(page: Any) -> None:
        assert page.is_paged
        found.fetched.append(page)

    monkeypatch.setattr(F, "get_paged", get_paged)
    monkeypatch.setattr(F, "fill", lambda page, value: page.fill_(value))
    monkeypatch.setattr(F, "prefetch_tensor", prefetch_tensor)
    monkeypatch.setattr(Optimizer8bit, "get_state_buffer", get_state_buffer)
    monkeypatch.setattr(F.GlobalPageManager.get_instance(), "paged_tensors", found.made)
    return found


def engine_of(name: OptimizerName) -> TorchEngine:
    """Large are an embedding, with float32 states, and a matrix; small a matrix in 8 bits, a norm and biases."""
    torch.manual_seed(0)
    model: Any = Net(nn.Embedding(WIDE + 1, WIDE), nn.Linear(WIDE, WIDE), nn.LayerNorm(WIDE), nn.Linear(WIDE, 64))
    config = TrainConfig(
        max_steps=STEPS, optimizer=name, learning_rate=0.01, weight_decay=0.1, schedule=Schedule.constant
    )
    optimizer, scheduler = build_optimizer(model, config, num_steps=STEPS, learning_rate=config.learning_rate)
    return TorchEngine(model, optimizer, scheduler, config=DistributedConfig(device=Device.cpu), max_grad_norm=math.inf)


def take(engine: TorchEngine, steps: range) -> list[Tensor]:
    for step in steps:
        drawn = torch.Generator().manual_seed(step)
        for p in engine.model.parameters():
            p.grad = torch.randn(p.shape, generator=drawn)
        engine.step()
    return [p.detach().clone() for p in engine.model.parameters()]


def paged(engine: TorchEngine) -> dict[str, Tensor]:
    names = {p: name for name, p in engine.model.named_parameters()}
    states = {f"{names[p]} {key}": t for p, state in engine.optimizer.state.items() for key, t in state.items()}
    return {name: t for name, t in states.items() if isinstance(t, Tensor) and "is_paged" in vars(t)}


def test_states_of_large_weights_are_in_pages_and_are_what_they_are_without(pages: SimpleNamespace) -> None:
    plain, engine = engine_of(OptimizerName.adamw_8bit), engine_of(OptimizerName.paged_adamw_8bit)
    assert all(map(torch.equal, take(plain, range(STEPS)), take(engine, range(STEPS))))
    found = paged(engine)
    assert {name: t.dtype for name, t in found.items()} == {
        **{f"0.weight state{number}": torch.float32 for number in (1, 2)},
        **{f"1.weight state{number}": torch.uint8 for number in (1, 2)},
    }
    assert {id(t) for t in found.values()} == {id(t) for t in pages.made} == {id(t) for t in pages.fetched}
    assert len(pages.fetched) == 4 * STEPS and paged(plain) == {}
    kinds = weight_kinds(engine.model, None)
    train = TrainConfig(max_steps=1, optimizer=OptimizerName.paged_adamw_8bit)
    counted = all_states(train, kinds, {name: p.shape for name, p in engine.model.named_parameters()})
    assert counted.paged == sum(t.numel() * t.element_size() for t in pages.made)
    assert counted.page == 2 * 4 * (WIDE + 1) * WIDE


@pytest.mark.parametrize("resharded", [False, True])
def test_what_goes_on_is_in_pages_again_and_bit_for_bit(
    resharded: bool, pages: SimpleNamespace, tmp_path: Path
) -> None:
    engine = engine_of(OptimizerName.paged_adamw_8bit)
    take(engine, range(2))
    torch.save(engine.state(), tmp_path / "state.pt")
    wanted = take(engine, range(2, STEPS))
    saved = torch.load(tmp_path / "state.pt", weights_only=True, mmap=True)
    states = [t for state in saved["optimizer"]["state"].values() for t in state.values() if isinstance(t, Tensor)]
    assert states and not any("is_paged" in vars(t) for t in states)  # a file's memory is none that CUDA moves
    other = engine_of(OptimizerName.paged_adamw_8bit)
    own = len(pages.made)
    for _ in range(2):  # what there is is filled again, as bitsandbytes never gives a page back
        other.load_resharded([saved]) if resharded else other.load_state(saved)
        found = paged(other)
        assert len(found) == 4 and len(pages.made) == own + 4
        assert {id(t) for t in found.values()} == {id(t) for t in pages.made[own:]}
    pages.fetched.clear()
    assert all(map(torch.equal, take(other, range(2, STEPS)), wanted))
    assert {id(t) for t in pages.fetched} == {id(t) for t in found.values()}

"""Each optimizer against its equations, or the library's own alone; and what is saved of one goes on bit for bit."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon

from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import ConfigError
from alignment.config.optimizer import MIN_8BIT, OptimizerName
from alignment.config.train import Schedule, TrainConfig
from alignment.distributed.engine import TorchEngine
from alignment.training.optim import build_optimizer

RATE, DECAY, STEPS = 0.01, 0.1, 4


class Net(nn.Sequential):
    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


def net() -> Any:
    """An embedding, a matrix whose states bitsandbytes keeps in 8 bits, a norm and a bias."""
    torch.manual_seed(0)
    return Net(nn.Embedding(70, 64), nn.Linear(64, 65), nn.LayerNorm(65))


def config_of(name: str, **more: Any) -> TrainConfig:
    settings = {"learning_rate": RATE, "weight_decay": DECAY, "schedule": Schedule.constant}
    return TrainConfig(max_steps=STEPS, optimizer=OptimizerName(name), **settings | more)


def gradients(step: int, model: nn.Module) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=drawn) for p in model.parameters()]


def engine_of(config: TrainConfig) -> TorchEngine:
    model = net()
    optimizer, scheduler = build_optimizer(model, config, num_steps=STEPS, learning_rate=config.learning_rate)
    return TorchEngine(model, optimizer, scheduler, config=DistributedConfig(device=Device.cpu), max_grad_norm=math.inf)


def take(engine: TorchEngine, steps: range) -> list[list[Tensor]]:
    """The weights after each of the steps."""
    found = []
    for step in steps:
        for p, gradient in zip(engine.model.parameters(), gradients(step, engine.model), strict=True):
            p.grad = gradient
        engine.step()
        found.append([p.detach().clone() for p in engine.model.parameters()])
    return found


def by_hand(name: str, rule: Any, **more: Any) -> None:
    """`rule(w, g, t, state)` -> w in float64, of step t from 1; the decay is 0 of what has one dimension."""
    engine = engine_of(config_of(name, **more))
    wanted = [p.detach().double() for p in engine.model.parameters()]
    states: list[dict[str, Any]] = [{} for _ in wanted]
    for step, found in enumerate(take(engine, range(STEPS))):
        drawn = [g.double() for g in gradients(step, engine.model)]
        wanted = [
            rule(w, g, step + 1, state, DECAY if w.ndim == 2 else 0.0)
            for w, g, state in zip(wanted, drawn, states, strict=True)
        ]
        for w, p in zip(wanted, found, strict=True):
            torch.testing.assert_close(p.double(), w, rtol=1e-5, atol=1e-6)


def test_lion_is_its_equations() -> None:
    """Chen et al. 2302.06675, algorithm 2, with its own betas where none are given."""

    def rule(w: Tensor, g: Tensor, t: int, state: dict[str, Any], decay: float) -> Tensor:
        mean = state.get("m", torch.zeros_like(w))
        update = (0.9 * mean + 0.1 * g).sign() + decay * w
        state["m"] = 0.99 * mean + 0.01 * g
        return w - RATE * update

    by_hand("lion", rule)


@pytest.mark.parametrize("momentum", [None, 0.8])
def test_sgd_is_its_equations(momentum: float | None) -> None:
    def rule(w: Tensor, g: Tensor, t: int, state: dict[str, Any], decay: float) -> Tensor:
        state["b"] = (momentum or 0.0) * state.get("b", torch.zeros_like(w)) + g + decay * w
        return w - RATE * state["b"]

    by_hand("sgd", rule, momentum=momentum)


def test_adafactor_is_its_equations_at_the_rate_that_is_given() -> None:
    """Shazeer and Stern 1804.04235, algorithms 4 and 5 with d = 1 and beta_2t = 1 - t^-0.8, no rate of its own."""

    def rule(w: Tensor, g: Tensor, t: int, state: dict[str, Any], decay: float) -> Tensor:
        beta, squares = 1 - t**-0.8, g**2 + 1e-30
        means = [squares.mean(dim) for dim in (-1, -2)] if w.ndim == 2 else [squares]
        kept = [beta * old + (1 - beta) * new for old, new in zip(state.get("v", means), means, strict=True)]
        state["v"] = kept
        second = torch.outer(kept[0], kept[1]) / kept[0].mean() if w.ndim == 2 else kept[0]
        update = g / second.sqrt()
        update = update / max(1.0, update.square().mean().sqrt().item())
        return w - RATE * (update + decay * w)

    by_hand("adafactor", rule)


def test_muon_is_torch_s_for_matrices_within_and_adamw_for_the_others() -> None:
    engine = engine_of(config_of("muon", betas=[0.8, 0.9], eps=1e-6, momentum=0.9))
    wanted = net()
    matrix = wanted[1].weight
    norms = [p for p in wanted.parameters() if p.ndim == 1]
    muon = Muon([matrix], lr=RATE, weight_decay=DECAY, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": [wanted[0].weight]}, {"params": norms, "weight_decay": 0.0}]
    adamw = AdamW(groups, lr=RATE, weight_decay=DECAY, betas=(0.8, 0.9), eps=1e-6, fused=True)
    for step, found in enumerate(take(engine, range(STEPS))):
        for p, gradient in zip(wanted.parameters(), gradients(step, wanted), strict=True):
            p.grad = gradient
        muon.step()
        adamw.step()
        assert all(torch.equal(p, w) for p, w in zip(found, wanted.parameters(), strict=True))


def test_muon_s_update_is_as_long_as_adamw_s() -> None:
    """0.2 to 0.4 of the rate at each weight, by its authors (2502.16982, section 2.2)."""
    engine = engine_of(config_of("muon", weight_decay=0.0))
    before = engine.model.get_parameter("1.weight").detach().clone()
    ((_, after, *_),) = take(engine, range(1))
    length = (after - before).square().mean().sqrt() / RATE
    assert 0.15 < length < 0.3


def test_adamw_in_8_bits_is_adamw_but_for_what_its_blocks_round() -> None:
    """Embeddings and small weights are kept in float32; the matrix's first update is of states not yet rounded."""
    found, wanted = (take(engine_of(config_of(name)), range(STEPS)) for name in ("adamw_8bit", "adamw"))
    began = list(net().parameters())
    for step, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        for place, (p, w) in enumerate(zip(ours, theirs, strict=True)):
            if place != 1 or step == 0:
                torch.testing.assert_close(p, w, rtol=1e-5, atol=1e-6)
            else:
                away, moved = (p - w).norm(), (w - began[place]).norm()
                assert 0 < away < 0.1 * moved
    assert found[0][1].numel() >= MIN_8BIT > 65


@pytest.mark.parametrize("name", list(OptimizerName))
def test_what_is_saved_goes_on_bit_for_bit(name: OptimizerName, tmp_path: Path) -> None:
    config = config_of(name, **({"momentum": 0.9} if name is OptimizerName.sgd else {}))
    unbroken = take(engine_of(config), range(STEPS))
    engine = engine_of(config)
    take(engine, range(2))
    torch.save(engine.state(), tmp_path / "state.pt")
    for resharded in (False, True):
        saved = torch.load(tmp_path / "state.pt", weights_only=True, mmap=True)
        other = engine_of(config)
        if resharded:
            other.load_resharded([saved])
        else:
            other.load_state(saved)
        again = take(other, range(2, STEPS))
        for old, new in zip(unbroken[2:], again, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optimizer": "adafactor", "betas": [0.9, 0.99]}, "train.betas goes with train.optimizer=adamw, adamw_8bit, "),
        (
            {"optimizer": "sgd", "eps": 1e-8},
            "train.eps goes with train.optimizer=adamw, adamw_8bit, paged_adamw_8bit, adamw_bf16, muon: sgd has none",
        ),
        ({"optimizer": "lion", "eps": 1e-6}, "train.eps goes with .*: lion has none, got 1e-06$"),
        ({"momentum": 0.9}, "train.momentum goes with train.optimizer=muon, sgd: adamw has none, got 0.9$"),
        ({"optimizer": "sgd", "momentum": 1.0}, r"train.momentum must be in \[0, 1\), got 1.0$"),
        ({"head_lr_ratio": 0.0}, "train.head_lr_ratio must be > 0 and finite, got 0.0$"),
        ({"embedding_lr_ratio": math.inf}, "train.embedding_lr_ratio must be > 0 and finite, got inf$"),
    ],
)
def test_a_constant_that_would_do_nothing_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        TrainConfig(max_steps=1, **keys)

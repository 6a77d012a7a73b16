"""AdamW with states in bfloat16: what is rounded at random is itself on the average, and nothing else is drawn."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from alignment.training import adamw_bf16
from alignment.training.adamw_bf16 import AdamWOfBF16, rounded

MANY = 2**16
LARGEST = torch.finfo(torch.bfloat16).max
CONSTANTS: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scale", [1.0, -1.0, 3e-39, -1e30])  # of which the third's are subnormal
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9])
def test_a_number_becomes_a_neighbour_as_often_as_it_lies_near_it(share: float, scale: float) -> None:
    """Gupta et al. 1502.02551, section 3: up with probability (x - low) / (high - low)."""
    low = torch.tensor(scale, dtype=torch.float32).bfloat16()
    high = (low.view(torch.int16) + 1).view(torch.bfloat16)  # the next one away from 0
    between = low.double() + share * (high.double() - low.double())
    number = between.float()
    wanted = float((number.double() - low.double()) / (high.double() - low.double()))
    found = rounded(number.expand(MANY).contiguous(), drawn())
    assert found.dtype == torch.bfloat16 and ((found == low) | (found == high)).all()
    assert float((found == high).double().mean()) == pytest.approx(wanted, abs=4 * 0.5 / math.sqrt(MANY))


def test_the_mean_of_what_is_rounded_is_what_it_was() -> None:
    numbers = torch.randn(8, generator=drawn(1)).double().float()
    found = rounded(numbers[:, None].repeat(1, MANY), drawn(2)).double().mean(1)
    spacing = 2.0 ** (numbers.double().abs().log2().floor() - 7)
    assert ((found - numbers.double()).abs() < 4 * spacing * 0.5 / math.sqrt(MANY)).all()


def test_what_a_bfloat16_has_and_what_is_no_number_stay_as_they_are() -> None:
    exact = torch.randn(1000, generator=drawn(3)).bfloat16()
    for seed in range(4):
        assert torch.equal(rounded(exact.float(), drawn(seed)), exact)
    most = torch.finfo(torch.float32).max
    cases = torch.tensor([math.inf, -math.inf, most, -most, 0.0, -0.0]).repeat(1000, 1)
    found = rounded(cases, drawn()).double()
    assert (found == torch.tensor([math.inf, -math.inf, LARGEST, -LARGEST, 0.0, 0.0], dtype=torch.float64)).all()
    nans = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1, -0x00400000], dtype=torch.int32).view(torch.float32)
    assert nans.isnan().all() and rounded(nans.repeat(1000, 1), drawn()).isnan().all()


def weights() -> list[nn.Parameter]:
    shapes = ((6, 50), (40,), (3, 4, 5), ())
    return [nn.Parameter(torch.randn(shape, generator=drawn(n))) for n, shape in enumerate(shapes)]


def take(optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    for step in steps:
        for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.randn(p.shape, generator=drawn(100 * step + number))
        optimizer.step()
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def groups_of(own: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": own[:2], "lr": 0.01, "weight_decay": 0.1},
        {"params": own[2:], "lr": 0.003, "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(("chunk", "near"), [(2**22, 0.0), (100, 1e-6)])
def test_it_is_torch_s_adamw_but_for_what_is_rounded(chunk: int, near: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step to the bit, for nothing is rounded before it; in parts to the last, which kernels compute
    otherwise."""
    ours, theirs, began = weights(), weights(), weights()
    optimizer = AdamWOfBF16(groups_of(ours), **CONSTANTS)
    other = AdamW(groups_of(theirs), **CONSTANTS, fused=True)
    monkeypatch.setattr(adamw_bf16, "AT_ONCE", chunk)
    for step in range(6):
        found, wanted = (take(each, range(step, step + 1)) for each in (optimizer, other))
        for p, w, first in zip(found, wanted, began, strict=True):
            assert (p - w).norm() <= (0.01 if step else near) * (w - first).norm()
    assert any(not torch.equal(p, w) for p, w in zip(ours, theirs, strict=True))
    for p, w in zip(ours, theirs, strict=True):
        assert optimizer.state[p]["step"] == 6
        for name, apart in (("exp_avg", 0.01), ("exp_avg_sq", 1e-6)):
            state = optimizer.state[p][name]
            assert state.dtype == torch.bfloat16
            torch.testing.assert_close(state.float(), other.state[w][name], rtol=0.03, atol=apart)


def test_a_mean_of_squares_goes_on_where_to_the_nearest_it_would_stand_still() -> None:
    """1 - 0.999^500 = 0.394 of gradients of 1; each step adds a thousandth of what is left, and from 0.25 on a
    bfloat16's spacing is twice that."""
    (p,) = own = [nn.Parameter(torch.zeros(4096))]
    optimizer = AdamWOfBF16([{"params": own, "lr": 0.0, "weight_decay": 0.0}], **CONSTANTS)
    for _ in range(500):
        p.grad = torch.ones_like(p)
        optimizer.step()
    found = optimizer.state[p]["exp_avg_sq"].double()
    assert found.mean().item() == pytest.approx(1 - 0.999**500, rel=0.005)
    step, nearest = 0.25 + 0.001 * (1 - 0.25), torch.tensor(0.25, dtype=torch.bfloat16)
    assert torch.tensor(step).bfloat16() == nearest


def test_nothing_else_is_drawn_and_no_two_places_or_steps_are_alike() -> None:
    own = [nn.Parameter(torch.zeros(1000)) for _ in range(4)]
    optimizer = AdamWOfBF16(groups_of(own), **CONSTANTS)
    before = torch.get_rng_state()
    found = []
    for _ in range(3):
        for p in own:
            p.grad = torch.full_like(p, 0.123)
        optimizer.step()
        found += [optimizer.state[p]["exp_avg"] - optimizer.state[p]["exp_avg"].float().mean() for p in own]
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(torch.equal(one, other) for n, one in enumerate(found) for other in found[:n])

"""The metrics of all pair losses, and the mean over pairs that count unequally."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignment.losses import (
    CPOLoss,
    DPOLoss,
    LossOutput,
    MarginRankingLoss,
    ORPOLoss,
    SimPOLoss,
    mean_over_pairs,
    preference_metrics,
)

LOSSES: dict[str, tuple[Callable[..., LossOutput], int]] = {  # and how many arguments it takes
    "reward": (MarginRankingLoss(center=0.1), 2),
    "dpo": (DPOLoss(), 4),
    "orpo": (ORPOLoss(), 2),
    "simpo": (SimPOLoss(), 2),
    "cpo": (CPOLoss(), 3),
}


def test_values_by_hand():
    # r_c - r_r = 1, -3, 0.  Two of three are not wins: a loss and a tie.
    metrics = preference_metrics(torch.tensor([2.0, -1.0, 5.0]), torch.tensor([1.0, 2.0, 5.0]))
    means = {name: metric.mean().item() for name, metric in metrics.items()}
    assert means == {
        "rewards/chosen": pytest.approx(6 / 3),
        "rewards/rejected": pytest.approx(8 / 3),
        "rewards/margin": pytest.approx(-2 / 3),
        "rewards/accuracy": pytest.approx(1 / 3),
    }
    assert all(metric.count.item() == 3 for metric in metrics.values())


def test_metrics_carry_no_graph():
    rewards = torch.ones(2, requires_grad=True)
    assert not any(metric.total.requires_grad for metric in preference_metrics(rewards, 2 * rewards).values())


def test_mean_over_pairs_by_hand():
    # (2 * 3 + 0.5 * 8) / 2.5 = 4; without weights (3 + 8) / 2.
    losses, weight = torch.tensor([3.0, 8.0]), torch.tensor([2.0, 0.5])
    weighted, plain = mean_over_pairs(losses, weight), mean_over_pairs(losses, None)
    assert (weighted.total.item(), weighted.count.item(), weighted.mean().item()) == (10.0, 2.5, 4.0)
    assert (plain.mean().item(), plain.count.item()) == (5.5, 2)
    with pytest.raises(ValueError, match=r"weight must have the shape of losses, got \[1\] against \[2\]"):
        mean_over_pairs(losses, torch.ones(1))


def arguments(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [-5 * torch.rand(5, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", LOSSES)
def test_a_pair_of_weight_two_is_the_pair_twice(name: str) -> None:
    loss, count = LOSSES[name]
    tensors, twice = arguments(count), torch.tensor([0, 1, 1, 2, 3, 4, 4])
    weight = torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0])
    weighted, repeated = loss(*tensors, weight=weight).loss, loss(*(each[twice] for each in tensors)).loss
    assert weighted.mean().item() == pytest.approx(repeated.mean().item(), rel=1e-6)
    assert weighted.count.item() == 7
    assert abs(weighted.mean() - loss(*tensors).loss.mean()) > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_that_count_alike_are_the_plain_mean_bit_for_bit(name: str) -> None:
    loss, count = LOSSES[name]
    found = []
    for weight in (None, torch.ones(5)):
        tensors = [each.requires_grad_() for each in arguments(count)]
        value = loss(*tensors, weight=weight).loss
        (value.total / value.count).backward()
        found.append([value.total, *(each.grad for each in tensors if each.grad is not None)])
    assert len(found[0]) == 1 + count
    assert all(torch.equal(plain, alike) for plain, alike in zip(*found, strict=True))

"""ScoreRegressionLoss (r - s)^2 and ProcessRewardLoss -log sigma(+-r), by hand."""

import math

import pytest
import torch

from alignment.losses import ProcessRewardLoss, ScoreRegressionLoss


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


RIGHT = torch.tensor([True, False, True])


def test_regression_by_hand() -> None:
    rewards = f64(1.5, -1, 0).requires_grad_()
    output = ScoreRegressionLoss()(rewards, f64(1, 1, 0.5))
    assert output.loss.total.item() == pytest.approx(0.25 + 4 + 0.25, rel=1e-12) and output.loss.count.item() == 3
    output.loss.total.backward()
    assert rewards.grad is not None and rewards.grad.tolist() == pytest.approx([1, -4, -1], rel=1e-12)
    found = {name: mean.mean().item() for name, mean in output.metrics.items()}
    assert found == pytest.approx({"rewards/mean": 0.5 / 3, "scores/mean": 2.5 / 3, "rewards/error": 1.0}, rel=1e-12)


def test_process_by_hand() -> None:
    rewards = f64(1.5, -1, -0.5).requires_grad_()
    output = ProcessRewardLoss()(rewards, RIGHT)
    terms = [-math.log(sigma(1.5)), -math.log(sigma(1)), -math.log(sigma(-0.5))]
    assert output.loss.total.item() == pytest.approx(sum(terms), rel=1e-12) and output.loss.count.item() == 3
    output.loss.total.backward()
    slopes = [sigma(1.5) - 1, sigma(-1), sigma(-0.5) - 1]
    assert rewards.grad is not None and rewards.grad.tolist() == pytest.approx(slopes, rel=1e-12)
    found = {name: mean.mean().item() for name, mean in output.metrics.items()}
    assert found.pop("rewards/accuracy") == pytest.approx(2 / 3)
    assert found == pytest.approx({"rewards/right": 0.5, "rewards/wrong": -1}, rel=1e-12)


def test_it_is_the_binary_cross_entropy_of_torch() -> None:
    rewards = torch.linspace(-30, 30, 7, dtype=torch.float64)
    right = torch.tensor([True, False] * 3 + [True])
    found = ProcessRewardLoss()(rewards, right).loss
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(rewards, right.double())
    assert (found.total / found.count).item() == pytest.approx(wanted.item(), rel=1e-12)


@pytest.mark.parametrize(("loss", "labels"), [(ScoreRegressionLoss(), f64(1, 2, 3)), (ProcessRewardLoss(), RIGHT)])
def test_a_weight_of_two_is_the_row_twice(loss: ScoreRegressionLoss | ProcessRewardLoss, labels: torch.Tensor) -> None:
    rewards, twice = f64(0.5, -1, 2), torch.tensor([0, 1, 1, 2])
    weighted = loss(rewards, labels, weight=f64(1, 2, 1)).loss
    repeated = loss(rewards[twice], labels[twice]).loss
    assert weighted.total.item() == pytest.approx(repeated.total.item(), rel=1e-12)
    assert weighted.count.item() == repeated.count.item() == 4


def test_errors() -> None:
    three = f64(1, 2, 3)
    with pytest.raises(ValueError, match=r"scores must have the shape of rewards, got \[2\] against \[3\]"):
        ScoreRegressionLoss()(three, three[:2])
    with pytest.raises(ValueError, match=r"rewards must have shape \[B\], got \[3, 1\]"):
        ProcessRewardLoss()(three[:, None], RIGHT[:, None])
    with pytest.raises(ValueError, match=r"right must have the shape of rewards, got \[2\] against \[3\]"):
        ProcessRewardLoss()(three, RIGHT[:2])
    with pytest.raises(ValueError, match=r"torch\.bool"):
        ProcessRewardLoss()(three, RIGHT.long())

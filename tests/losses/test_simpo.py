"""L = -log sigmoid(beta (p_c - p_r) - gamma) - cpo_alpha p_c, p the mean log-prob; -log sigmoid(-x) = log(1 + e^x)."""

import math

import pytest
import torch

from alignment.losses import SimPOLoss


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(loss: SimPOLoss, chosen: float, rejected: float) -> float:
    return loss(f64(chosen), f64(rejected)).loss.mean().item()


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_value_by_hand():
    # 2 (-1 + 2.5) - 0.5 = 2.5;  swapped: 2 (-2.5 + 1) - 0.5 = -3.5
    loss = SimPOLoss(beta=2.0, gamma=0.5)
    assert loss_of(loss, -1.0, -2.5) == pytest.approx(softplus(-2.5), rel=1e-12)
    assert loss_of(loss, -2.5, -1.0) == pytest.approx(softplus(3.5), rel=1e-12)


def test_gamma_is_a_margin_that_beta_does_not_scale():
    # Equal rewards: gamma alone is left, whatever beta is.
    for beta in (0.5, 4.0):
        assert loss_of(SimPOLoss(beta=beta, gamma=1.5), -3.0, -3.0) == pytest.approx(softplus(1.5), rel=1e-12)
    assert loss_of(SimPOLoss(gamma=0.0), -3.0, -3.0) == pytest.approx(math.log(2), rel=1e-12)


def test_label_smoothing_mixes_in_the_flipped_pair_behind_the_margin():
    # z = 2.5: 0.9 log(1 + e^-2.5) + 0.1 log(1 + e^2.5), as TRL has it.
    expected = 0.9 * softplus(-2.5) + 0.1 * softplus(2.5)
    assert loss_of(SimPOLoss(beta=2.0, gamma=0.5, label_smoothing=0.1), -1.0, -2.5) == pytest.approx(
        expected, rel=1e-12
    )


def test_cpo_alpha_adds_the_chosen_likelihood():
    expected = softplus(-2.5) + 0.3 * 1.0
    assert loss_of(SimPOLoss(beta=2.0, gamma=0.5, cpo_alpha=0.3), -1.0, -2.5) == pytest.approx(expected, rel=1e-12)


def test_gradient_by_hand():
    # d/dp_c = -beta sigmoid(-z) - cpo_alpha, d/dp_r = beta sigmoid(-z), z = 2.5.
    chosen, rejected = f64(-1.0).requires_grad_(), f64(-2.5).requires_grad_()
    SimPOLoss(beta=2.0, gamma=0.5, cpo_alpha=0.3)(chosen, rejected).loss.mean().backward()
    pull = 2 / (1 + math.exp(2.5))
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-pull - 0.3, rel=1e-12)
    assert rejected.grad.item() == pytest.approx(pull, rel=1e-12)


def test_metrics_by_hand():
    metrics = SimPOLoss(beta=2.0)(f64(-1.0, -3.0), f64(-2.0, -2.0)).metrics
    assert {name: metric.mean().item() for name, metric in metrics.items()} == {
        "rewards/chosen": -4.0,
        "rewards/rejected": -4.0,
        "rewards/margin": 0.0,
        "rewards/accuracy": 0.5,
        "logps/chosen": -2.0,
        "logps/rejected": -2.0,
        "nll": 2.0,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_extremes_are_finite(dtype):
    tensors = [torch.tensor(each, dtype=dtype, requires_grad=True) for each in ([-1e4, 0.0], [0.0, -1e4])]
    value = SimPOLoss(cpo_alpha=1.0)(*tensors).loss
    value.mean().backward()
    assert value.total.dtype == torch.float32 and value.total.isfinite()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("beta", 0.0, "must be > 0 and finite"),
        ("gamma", -0.1, "must be >= 0 and finite"),
        ("cpo_alpha", math.nan, "must be >= 0 and finite"),
        ("label_smoothing", 0.5, r"must be in \[0, 0\.5\)"),
    ],
)
def test_constants_out_of_range(key, value, rule):
    with pytest.raises(ValueError, match=rf"loss\.{key} {rule}, got {value}"):
        SimPOLoss(**{key: value})


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"rejected_logprobs must have the shape of chosen_logprobs"):
        SimPOLoss()(torch.zeros(2), torch.zeros(2, 1))

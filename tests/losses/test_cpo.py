"""L = f(log pi(y_c) - log pi(y_r)) + cpo_alpha nll(y_c); -log sigmoid(-x) = log(1 + e^x)."""

import math

import pytest
import torch

from alignment.losses import CPOLoss, CPOVariant, DPOLoss


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(loss: CPOLoss, chosen: float, rejected: float, nll: float = 0.0) -> float:
    return loss(f64(chosen), f64(rejected), f64(nll)).loss.mean().item()


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_value_by_hand():
    # beta h = 0.1 (-10 + 15) = 0.5, and the likelihood with weight 2: 2 * 1.25.
    assert loss_of(CPOLoss(cpo_alpha=2.0), -10.0, -15.0, 1.25) == pytest.approx(softplus(-0.5) + 2.5, rel=1e-12)
    assert loss_of(CPOLoss(cpo_alpha=0.0), -15.0, -10.0, 1.25) == pytest.approx(softplus(0.5), rel=1e-12)


def test_label_smoothing_mixes_in_the_flipped_pair():
    expected = 0.8 * softplus(-0.5) + 0.2 * softplus(0.5) + 1.25
    assert loss_of(CPOLoss(label_smoothing=0.2), -10.0, -15.0, 1.25) == pytest.approx(expected, rel=1e-12)


def test_hinge_is_slic():
    # max(0, 1 - 0.1 * 5) = 0.5, and 0 beyond 1 / beta = 10 nats; as SLiC writes it, beta * max(0, delta - h), delta 10.
    hinge = CPOLoss(variant=CPOVariant.hinge, cpo_alpha=0.3)
    assert loss_of(hinge, -10.0, -15.0, 1.25) == pytest.approx(0.1 * (10 - 5) + 0.3 * 1.25, rel=1e-12)
    assert loss_of(hinge, -10.0, -20.5, 1.25) == pytest.approx(0.3 * 1.25, rel=1e-12)
    assert loss_of(hinge, -15.0, -10.0, 0.0) == pytest.approx(1.5, rel=1e-12)


def test_it_is_dpo_with_a_reference_that_finds_all_alike():
    chosen, rejected, same = f64(-10.0, -3.0), f64(-15.0, -1.0), f64(-7.0, -7.0)
    dpo = DPOLoss(beta=0.3)(chosen, rejected, same, same).loss.mean()
    assert CPOLoss(beta=0.3, cpo_alpha=0.0)(chosen, rejected, same).loss.mean().item() == pytest.approx(dpo.item())


def test_gradient_by_hand():
    tensors = [f64(each).requires_grad_() for each in (-10.0, -15.0, 1.25)]
    CPOLoss(beta=0.1, cpo_alpha=0.7)(*tensors).loss.mean().backward()
    pull = 0.1 / (1 + math.exp(0.5))
    assert [each.grad.item() for each in tensors if each.grad is not None] == pytest.approx([-pull, pull, 0.7])


def test_metrics_by_hand():
    metrics = CPOLoss(beta=0.5)(f64(-1.0, -3.0), f64(-2.0, -2.0), f64(0.25, 0.75)).metrics
    assert {name: metric.mean().item() for name, metric in metrics.items()} == {
        "rewards/chosen": -1.0,
        "rewards/rejected": -1.0,
        "rewards/margin": 0.0,
        "rewards/accuracy": 0.5,
        "logps/chosen": -2.0,
        "logps/rejected": -2.0,
        "nll": 0.5,
    }


@pytest.mark.parametrize("variant", list(CPOVariant))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_extremes_are_finite(variant, dtype):
    values = ([-1e4, 0.0], [0.0, -1e4], [1e4, 0.0])
    tensors = [torch.tensor(each, dtype=dtype, requires_grad=True) for each in values]
    value = CPOLoss(variant=variant)(*tensors).loss
    value.mean().backward()
    assert value.total.dtype == torch.float32 and value.total.isfinite()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"beta": 0.0}, r"loss\.beta must be > 0 and finite, got 0"),
        ({"cpo_alpha": -1.0}, r"loss\.cpo_alpha must be >= 0 and finite, got -1"),
        ({"label_smoothing": 0.5}, r"loss\.label_smoothing must be in \[0, 0\.5\), got 0\.5"),
        ({"variant": "ipo"}, r"loss\.variant must be one of sigmoid, hinge, got 'ipo'"),
        ({"variant": "hinge", "label_smoothing": 0.1}, r"loss\.label_smoothing must be 0 for loss\.variant=hinge"),
    ],
)
def test_constants_out_of_range(settings, rule):
    with pytest.raises(ValueError, match=rule):
        CPOLoss(**settings)


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"chosen_nll must have the shape of chosen_logprobs, got \[\] against \[2\]"):
        CPOLoss()(torch.zeros(2), torch.zeros(2), torch.tensor(1.0))

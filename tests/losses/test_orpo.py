"""L = nll(y_c) - weight log sigmoid(log odds(y_c) - log odds(y_r)).

With p_c = 1/2 and p_r = 1/4: odds 1 and 1/3, odds ratio 3, sigmoid(log 3) = 3/4, so -log sigmoid = log(4/3).
In general sigmoid(log x) = x / (1 + x) for an odds ratio x.
"""

import math

import pytest
import torch

from alignment.losses import ORPOLoss, ORPONll, log1mexp

HALF, QUARTER = math.log(1 / 2), math.log(1 / 4)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_value_by_hand():
    # nll = log 2, odds ratio term log(4/3)
    loss = ORPOLoss(weight=0.1)(f64(HALF), f64(QUARTER)).loss.mean().item()
    assert loss == pytest.approx(math.log(2) + 0.1 * math.log(4 / 3), rel=1e-12)


def test_weight_multiplies_the_odds_ratio_term():
    loss = ORPOLoss(weight=2.0)(f64(HALF), f64(QUARTER)).loss.mean().item()
    assert loss == pytest.approx(math.log(2) + 2.0 * math.log(4 / 3), rel=1e-12)


def test_swapped_pair():
    # nll = log 4, odds ratio 1/3: -log(1/4) = log 4
    loss = ORPOLoss(weight=0.1)(f64(QUARTER), f64(HALF)).loss.mean().item()
    assert loss == pytest.approx(math.log(4) + 0.1 * math.log(4), rel=1e-12)


def test_sequence_takes_the_given_nll():
    loss = ORPOLoss(weight=0.1, nll=ORPONll.sequence)
    value = loss(f64(HALF), f64(QUARTER), f64(5.0)).loss.mean().item()
    assert value == pytest.approx(5.0 + 0.1 * math.log(4 / 3), rel=1e-12)


def test_nll_may_be_named_by_its_string():
    assert ORPOLoss(nll="sequence") == ORPOLoss(nll=ORPONll.sequence)  # type: ignore[arg-type]


def test_metrics_by_hand():
    # Two pairs (1/2, 1/4), (1/4, 1/2): log odds +-log 3, odds ratio losses log(4/3), log 4.
    metrics = ORPOLoss(weight=0.2)(f64(HALF, QUARTER), f64(QUARTER, HALF)).metrics
    assert {name: metric.mean().item() for name, metric in metrics.items()} == {
        "rewards/chosen": pytest.approx(0.2 * -1.5 * math.log(2)),
        "rewards/rejected": pytest.approx(0.2 * -1.5 * math.log(2)),
        "rewards/margin": pytest.approx(0.0, abs=1e-12),
        "rewards/accuracy": pytest.approx(0.5),
        "logps/chosen": pytest.approx(-1.5 * math.log(2)),
        "logps/rejected": pytest.approx(-1.5 * math.log(2)),
        "nll": pytest.approx(1.5 * math.log(2)),
        "log_odds": pytest.approx(0.0, abs=1e-12),
        "odds_ratio_loss": pytest.approx((math.log(4 / 3) + math.log(4)) / 2),
    }
    winner = ORPOLoss(nll=ORPONll.sequence)(f64(HALF), f64(QUARTER), f64(7.0)).metrics
    assert winner["log_odds"].mean().item() == pytest.approx(math.log(3))
    assert winner["nll"].mean().item() == pytest.approx(7.0)
    assert winner["rewards/margin"].mean().item() == pytest.approx(0.1 * math.log(2))


@pytest.mark.parametrize("nll", list(ORPONll))
def test_gradcheck(nll):
    inputs = [f64(-0.1, -0.6931, -3.0), f64(-2.0, -0.01, -0.7), f64(1.0, 2.0, 3.0)][: 2 + (nll is ORPONll.sequence)]
    for tensor in inputs:
        tensor.requires_grad_()
    loss = ORPOLoss(weight=0.4, nll=nll)
    assert torch.autograd.gradcheck(lambda *tensors: loss(*tensors).loss.mean(), inputs)


def test_gradient_by_hand():
    # Eq. 8 of the paper: d/dlog p_c [-log sigmoid(log OR)] = -(1 + OR)^-1 / (1 - p_c), and + ... / (1 - p_r) for p_r.
    # OR = 3, p_c = 1/2, p_r = 1/4: -1/4 * 2 = -1/2 and 1/4 * 4/3 = 1/3.
    chosen, rejected = f64(HALF).requires_grad_(), f64(QUARTER).requires_grad_()
    ORPOLoss(weight=0.1)(chosen, rejected).loss.mean().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-1 - 0.1 / 2, rel=1e-12)
    assert rejected.grad.item() == pytest.approx(0.1 / 3, rel=1e-12)


def test_split_invariance():
    torch.manual_seed(0)
    chosen, rejected = (-3 * torch.rand(7, dtype=torch.float64) for _ in range(2))
    parts = ORPOLoss()(chosen[:3], rejected[:3]).loss + ORPOLoss()(chosen[3:], rejected[3:]).loss
    assert parts.mean().item() == pytest.approx(ORPOLoss()(chosen, rejected).loss.mean().item(), rel=1e-12)


@pytest.mark.parametrize("x", [-1e-12, -1e-3, -0.69, -0.7, -5.0, -40.0])
def test_log1mexp_against_its_series(x):
    # log(1 - e^x): for small |x| it is log|x| + x/2 + x^2/24 + O(x^4), elsewhere log of the plain difference will do.
    expected = math.log(-x) + x / 2 + x * x / 24 if x > -0.01 else math.log(1 - math.exp(x))
    if x == -40.0:
        expected = -math.exp(-40.0)  # log(1 - y) = -y for y below the rounding of 1
    assert log1mexp(f64(x)).item() == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log1mexp_is_finite_and_monotone_up_to_zero(dtype):
    x = torch.tensor([-1e4, -100.0, -1.0, -0.6931472, -1e-3, -1e-6, -1e-30, 0.0], dtype=dtype, requires_grad=True)
    y = log1mexp(x)
    y.sum().backward()
    assert y.isfinite().all() and (y.diff() <= 0).all()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad <= 0).all()
    assert y[-1].item() == pytest.approx(math.log(torch.finfo(dtype).eps), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("chosen", [0.0, -1e-8, -1e4])
@pytest.mark.parametrize("rejected", [0.0, -1e-8, -1e4])
def test_extremes_are_finite(dtype, chosen, rejected):
    tensors = [torch.tensor([each], dtype=dtype, requires_grad=True) for each in (chosen, rejected)]
    output = ORPOLoss()(*tensors)
    output.loss.mean().backward()
    assert output.loss.total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert output.loss.total.isfinite()
    assert all(metric.total.isfinite() for metric in output.metrics.values())
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)


def test_chosen_nll_is_required_or_refused():
    with pytest.raises(ValueError, match=r"chosen_nll must be None for loss\.nll=completion"):
        ORPOLoss()(f64(-1.0), f64(-1.0), f64(1.0))
    with pytest.raises(ValueError, match=r"chosen_nll must be given for loss\.nll=sequence"):
        ORPOLoss(nll=ORPONll.sequence)(f64(-1.0), f64(-1.0))


@pytest.mark.parametrize("weight", [0.0, -0.1, math.inf, math.nan])
def test_weight_out_of_range(weight):
    with pytest.raises(ValueError, match=rf"loss\.weight must be > 0 and finite, got {weight}"):
        ORPOLoss(weight=weight)


def test_wrong_nll_and_shapes():
    with pytest.raises(ValueError, match=r"loss\.nll must be one of completion, sequence, got 'prompt'"):
        ORPOLoss(nll="prompt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rejected_logprobs must have the shape of chosen_logprobs"):
        ORPOLoss()(torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"chosen_nll must have the shape of chosen_logprobs, got \[\] against \[2\]"):
        ORPOLoss(nll=ORPONll.sequence)(torch.zeros(2), torch.zeros(2), torch.tensor(1.0))

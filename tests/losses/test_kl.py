"""k1 = -d, k2 = d^2 / 2, k3 = e^d - 1 - d with d = log pi_ref - log pi."""

import math

import pytest
import torch

from alignment.losses import KLEstimator, adaptive_kl_weight, kl_estimate


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_values_by_hand():
    # d = -1 - (-3) = 2 and d = -4 - (-3) = -1
    logprobs, ref_logprobs = f64(-3.0, -3.0), f64(-1.0, -4.0)
    assert kl_estimate(logprobs, ref_logprobs, KLEstimator.k1).tolist() == [-2.0, 1.0]
    assert kl_estimate(logprobs, ref_logprobs, KLEstimator.k2).tolist() == [2.0, 0.5]
    expected = [math.exp(2) - 1 - 2, math.exp(-1) - 1 + 1]
    assert kl_estimate(logprobs, ref_logprobs, KLEstimator.k3).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_expectation_under_the_policy_is_the_divergence(estimator):
    # sum_x pi(x) k(x) must be KL(pi || pi_ref) = 0.7 log(0.7/0.4) + 0.2 log(0.2/0.5) + 0.1 log 1, not its reverse.
    pi, pi_ref = [0.7, 0.2, 0.1], [0.4, 0.5, 0.1]
    divergence = sum(p * math.log(p / q) for p, q in zip(pi, pi_ref, strict=True))
    k = kl_estimate(f64(*pi).log(), f64(*pi_ref).log(), estimator)
    assert sum(p * each for p, each in zip(pi, k.tolist(), strict=True)) == pytest.approx(divergence, rel=1e-12)


@pytest.mark.parametrize("estimator", list(KLEstimator))
def test_equal_models_diverge_by_exactly_nothing(estimator):
    logprobs = torch.tensor([[-1.7, 0.0], [-1e4, -3.3]])
    assert (kl_estimate(logprobs, logprobs.clone(), estimator) == 0).all()


@pytest.mark.parametrize("estimator", [KLEstimator.k2, KLEstimator.k3])
def test_k2_and_k3_are_never_negative(estimator):
    d = torch.linspace(-30, 30, 4001, dtype=torch.float64)
    assert (kl_estimate(torch.zeros_like(d), d, estimator) >= 0).all()


@pytest.mark.parametrize("estimator", list(KLEstimator))
def test_gradcheck(estimator):
    inputs = [f64(-0.2, -3.0, -5.0).requires_grad_(), f64(-1.0, -0.1, -5.5).requires_grad_()]
    assert torch.autograd.gradcheck(lambda *tensors: kl_estimate(*tensors, estimator), inputs)


@pytest.mark.parametrize("estimator", list(KLEstimator))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_extremes_are_finite(estimator, dtype):
    logprobs = torch.tensor([0.0, -1e4], dtype=dtype, requires_grad=True)
    ref_logprobs = torch.tensor([-1e4, 0.0], dtype=dtype, requires_grad=True)
    kl = kl_estimate(logprobs, ref_logprobs, estimator)
    kl.sum().backward()
    assert kl.dtype == torch.float32 and kl.isfinite().all()
    assert logprobs.grad is not None and logprobs.grad.isfinite().all()
    assert ref_logprobs.grad is not None and ref_logprobs.grad.isfinite().all()


def test_a_small_divergence_survives_float32():
    # k3 of d = 0.001 is 5.0017e-7; exp(d) - 1 - d in float32 loses half of its digits, expm1 keeps four.
    k3 = kl_estimate(torch.tensor([0.0]), torch.tensor([0.001]), "k3").item()
    assert k3 == pytest.approx(0.001**2 / 2 + 0.001**3 / 6, rel=2e-4)


def test_wrong_shapes_and_names():
    with pytest.raises(ValueError, match=r"ref_logprobs must have the shape of logprobs, got \[2, 1\] against \[2\]"):
        kl_estimate(torch.zeros(2), torch.zeros(2, 1), "k1")
    with pytest.raises(ValueError, match=r"estimator must be one of k1, k2, k3, got 'full'"):
        kl_estimate(torch.zeros(2), torch.zeros(2), "full")


def test_gradient_in_expectation():
    """Over the logits, as losses: k2 has that of KL(pi || pi_ref), k3 that of KL(pi_ref || pi), k1 none."""
    logits, pi_ref = f64(0.5, -0.2, 0.1).requires_grad_(), f64(0.2, 0.5, 0.3)
    logprobs = logits.log_softmax(0)
    pi = logprobs.detach().exp()
    reverse = (logprobs.exp() * (logprobs - pi_ref.log())).sum()
    forward = (pi_ref * (pi_ref.log() - logprobs)).sum()
    of_reverse, of_forward = (torch.autograd.grad(kl, logits, retain_graph=True)[0] for kl in (reverse, forward))
    found = {}
    for estimator in KLEstimator:  # E_pi[grad k] = sum_x pi(x) grad k(x), pi held fixed as samples are
        expectation = (pi * kl_estimate(logprobs, pi_ref.log(), estimator)).sum()
        (found[estimator],) = torch.autograd.grad(expectation, logits, retain_graph=True)
    torch.testing.assert_close(found[KLEstimator.k1], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(found[KLEstimator.k2], of_reverse)
    torch.testing.assert_close(found[KLEstimator.k3], of_forward)
    assert (of_reverse - of_forward).abs().max() > 1e-2
    for estimator in (KLEstimator.k1, KLEstimator.k3):  # times pi / pi_old, of samples from another policy
        pi_old = f64(0.1, 0.6, 0.3)
        ratio = (logprobs - pi_old.log()).exp()
        expectation = (pi_old * ratio * kl_estimate(logprobs, pi_ref.log(), estimator)).sum()
        torch.testing.assert_close(torch.autograd.grad(expectation, logits, retain_graph=True)[0], of_reverse)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.3),  # on target: as it was
        (6.6, 0.3 * (1 + 0.1 * 0.05)),  # e = 0.1, K = 500 / 10000 = 0.05
        (5.4, 0.3 * (1 - 0.1 * 0.05)),
        (7.2, 0.3 * (1 + 0.2 * 0.05)),  # e = 0.2, from here on clipped
        (60.0, 0.3 * (1 + 0.2 * 0.05)),
        (0.0, 0.3 * (1 - 0.2 * 0.05)),
        (-3.0, 0.3 * (1 - 0.2 * 0.05)),  # k1 may be negative
    ],
)
def test_adaptive_weight_by_hand(kl, expected):
    weight = adaptive_kl_weight(0.3, kl, target=6.0, count=500, horizon=10_000)
    assert weight == pytest.approx(expected, rel=1e-12)


def test_adaptive_weight_is_the_papers_with_a_tenth_of_the_horizon():
    # K_beta = 0.1: beta (1 + 0.1 * 0.2)
    assert adaptive_kl_weight(1.0, 100.0, target=1.0, count=10, horizon=100) == pytest.approx(1.02, rel=1e-12)


def test_adaptive_weight_stays_positive_and_moves_a_fifth_a_horizon():
    up = down = 1.0
    for _ in range(100):
        up = adaptive_kl_weight(up, 9.0, target=1.0, count=100, horizon=10_000)
        down = adaptive_kl_weight(down, 0.0, target=1.0, count=100, horizon=10_000)
    assert (up, down) == (pytest.approx(math.exp(0.2), rel=1e-3), pytest.approx(math.exp(-0.2), rel=1e-3))
    assert adaptive_kl_weight(1.0, -1e9, target=1e-9, count=7, horizon=7) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": -0.1}, "weight must be >= 0 and finite, got -0.1"),
        ({"kl": math.nan}, "kl must be finite, got nan"),
        ({"target": 0.0}, "target must be > 0 and finite, got 0.0"),
        ({"count": 101}, r"count must be in \[0, horizon = 100\], got 101"),
        ({"count": -1}, r"count must be in \[0, horizon = 100\], got -1"),
    ],
)
def test_adaptive_weight_errors(change, message):
    arguments = {"weight": 0.1, "kl": 1.0, "target": 2.0, "count": 10, "horizon": 100} | change
    with pytest.raises(ValueError, match=message):
        adaptive_kl_weight(**arguments)

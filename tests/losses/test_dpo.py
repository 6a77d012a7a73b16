"""h = (log pi(y_c) - log pi_ref(y_c)) - (log pi(y_r) - log pi_ref(y_r)); each variant by hand.

The pair used throughout: log pi = -10, -12; log pi_ref = -11, -10.  h = (-10 + 11) - (-12 + 10) = 1 + 2 = 3.
Its log-ratios: c = -10 + 11 = 1, r = -12 + 10 = -2.
"""

import math
from collections.abc import Callable

import pytest
import torch

from alignment.losses import DPOLoss, DPOVariant
from alignment.losses.dpo import SMOOTHED, WITH_MARGIN

PAIR = (-10.0, -12.0, -11.0, -10.0)
NEEDS_SMOOTHING = (DPOVariant.robust, DPOVariant.exo_pair)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(loss: DPOLoss, *logprobs: float) -> float:
    return loss(*(f64(each) for each in logprobs)).loss.mean().item()


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log(1 + math.exp(x))


def test_policy_equal_to_reference_costs_log_2():
    assert loss_of(DPOLoss(), -7.0, -9.0, -7.0, -9.0) == pytest.approx(math.log(2), rel=1e-12)


def test_sigmoid_and_beta():
    assert loss_of(DPOLoss(beta=0.1), *PAIR) == pytest.approx(softplus(-0.3), rel=1e-12)
    assert loss_of(DPOLoss(beta=0.5), *PAIR) == pytest.approx(softplus(-1.5), rel=1e-12)


@pytest.mark.parametrize(("argument", "h"), [(0, 4.0), (1, 2.0), (2, 2.0), (3, 4.0)])
def test_the_sign_of_each_log_prob(argument, h):
    # One nat more on pi(y_c) or pi_ref(y_r) raises h from 3 to 4; on pi(y_r) or pi_ref(y_c) it lowers h to 2.
    logprobs = list(PAIR)
    logprobs[argument] += 1.0
    assert loss_of(DPOLoss(beta=0.1), *logprobs) == pytest.approx(softplus(-0.1 * h), rel=1e-12)


def test_label_smoothing_mixes_in_the_flipped_pair():
    # 0.9 log(1 + e^-0.3) + 0.1 log(1 + e^0.3)
    expected = 0.9 * softplus(-0.3) + 0.1 * softplus(0.3)
    assert loss_of(DPOLoss(beta=0.1, label_smoothing=0.1), *PAIR) == pytest.approx(expected, rel=1e-12)


def test_robust_removes_the_flipped_pair():
    # (0.9 log(1 + e^-0.3) - 0.1 log(1 + e^0.3)) / 0.8
    expected = (0.9 * softplus(-0.3) - 0.1 * softplus(0.3)) / 0.8
    robust = DPOLoss(beta=0.1, label_smoothing=0.1, variant=DPOVariant.robust)
    assert loss_of(robust, *PAIR) == pytest.approx(expected, rel=1e-12)


def test_robust_is_unbiased_under_flips():
    # With a share e of flipped labels, the expected robust loss is the clean DPO loss:
    # (1 - e) robust(h) + e robust(-h) = -log sigmoid(beta h).
    robust = DPOLoss(beta=0.1, label_smoothing=0.2, variant=DPOVariant.robust)
    chosen, rejected, ref_chosen, ref_rejected = PAIR
    noisy = 0.8 * loss_of(robust, *PAIR) + 0.2 * loss_of(robust, rejected, chosen, ref_rejected, ref_chosen)
    assert noisy == pytest.approx(softplus(-0.3), rel=1e-12)


def test_ipo_regresses_h_to_one_over_two_beta():
    # (3 - 1 / 0.2)^2 = 4;  (3 - 1 / 1)^2 = 4 from the other side;  zero at h = 1 / (2 beta) = 3.
    assert loss_of(DPOLoss(beta=0.1, variant=DPOVariant.ipo), *PAIR) == pytest.approx(4.0, rel=1e-12)
    assert loss_of(DPOLoss(beta=0.5, variant=DPOVariant.ipo), *PAIR) == pytest.approx(4.0, rel=1e-12)
    assert loss_of(DPOLoss(beta=1 / 6, variant=DPOVariant.ipo), *PAIR) == pytest.approx(0.0, abs=1e-20)


def test_hinge_stops_at_one():
    # 1 - 0.1 * 3 = 0.7;  1 + 0.1 * 3 for the swapped pair;  beta h = 1.5 > 1 costs nothing.
    hinge = DPOLoss(beta=0.1, variant=DPOVariant.hinge)
    assert loss_of(hinge, *PAIR) == pytest.approx(0.7, rel=1e-12)
    assert loss_of(hinge, -12.0, -10.0, -10.0, -11.0) == pytest.approx(1.3, rel=1e-12)
    assert loss_of(DPOLoss(beta=0.5, variant=DPOVariant.hinge), *PAIR) == 0.0


def test_variant_may_be_named_by_its_string():
    assert DPOLoss(variant="ipo") == DPOLoss(variant=DPOVariant.ipo)  # type: ignore[arg-type]


def test_gradient_by_hand():
    # dL/dlog pi(y_c) = -beta sigmoid(-beta h), and the opposite for the rejected one (eq. 7's gradient).
    tensors = [f64(each).requires_grad_() for each in PAIR]
    DPOLoss(beta=0.1)(*tensors).loss.mean().backward()
    pull = 0.1 / (1 + math.exp(0.3))
    gradients = [tensor.grad.item() for tensor in tensors if tensor.grad is not None]
    assert gradients == pytest.approx([-pull, pull, pull, -pull], rel=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        DPOLoss(beta=0.3),
        DPOLoss(beta=0.3, label_smoothing=0.2),
        DPOLoss(beta=0.3, label_smoothing=0.2, variant=DPOVariant.robust),
        DPOLoss(beta=0.3, variant=DPOVariant.ipo),
        DPOLoss(beta=0.3, variant=DPOVariant.hinge),
        *(DPOLoss(beta=0.3, variant=variant) for variant in set(DPOVariant) - set(SMOOTHED)),
        DPOLoss(beta=0.3, label_smoothing=0.2, variant=DPOVariant.exo_pair),
        DPOLoss(beta=0.3, label_smoothing=0.2, variant=DPOVariant.aot),
    ],
)
def test_gradcheck(loss):
    torch.manual_seed(0)
    inputs = [(-5 * torch.rand(4, dtype=torch.float64)).requires_grad_() for _ in range(4)]
    shift = torch.randn(4, dtype=torch.float64) if loss.variant is DPOVariant.aot else None
    assert torch.autograd.gradcheck(lambda *tensors: loss(*tensors, shift=shift).loss.mean(), inputs)


def test_metrics_by_hand():
    # Implicit rewards beta (log pi - log pi_ref): pair 1: 0.1, -0.2 (a win); pair 2: -0.3, 0 (a miss).
    tensors = f64(-10.0, -8.0), f64(-12.0, -6.0), f64(-11.0, -5.0), f64(-10.0, -6.0)
    metrics = DPOLoss(beta=0.1)(*tensors).metrics
    assert {name: metric.mean().item() for name, metric in metrics.items()} == {
        "rewards/chosen": pytest.approx(-0.1),
        "rewards/rejected": pytest.approx(-0.1),
        "rewards/margin": pytest.approx(0.0, abs=1e-12),
        "rewards/accuracy": pytest.approx(0.5),
        "logps/chosen": pytest.approx(-9.0),
        "logps/rejected": pytest.approx(-9.0),
    }


def test_split_invariance():
    torch.manual_seed(0)
    tensors = [-5 * torch.rand(7, dtype=torch.float64) for _ in range(4)]
    loss = DPOLoss(label_smoothing=0.1)
    parts = loss(*(each[:2] for each in tensors)).loss + loss(*(each[2:] for each in tensors)).loss
    assert parts.mean().item() == pytest.approx(loss(*tensors).loss.mean().item(), rel=1e-12)


@pytest.mark.parametrize("variant", list(DPOVariant))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_extremes_are_finite(variant, dtype):
    loss = DPOLoss(label_smoothing=0.1 if variant in NEEDS_SMOOTHING else 0.0, variant=variant)
    low, high = torch.tensor([-1e4, 0.0], dtype=dtype), torch.tensor([0.0, -1e4], dtype=dtype)
    tensors = [each.clone().requires_grad_() for each in (low, high, high, low)]
    value = loss(*tensors, shift=torch.zeros(2) if variant is DPOVariant.aot else None).loss
    value.mean().backward()
    assert value.total.dtype == torch.float32 and value.total.isfinite()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_beta_out_of_range(beta):
    with pytest.raises(ValueError, match=rf"loss\.beta must be > 0 and finite, got {beta}"):
        DPOLoss(beta=beta)


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 0.7, math.nan])
def test_label_smoothing_out_of_range(smoothing):
    with pytest.raises(ValueError, match=rf"loss\.label_smoothing must be in \[0, 0\.5\), got {smoothing}"):
        DPOLoss(label_smoothing=smoothing)


def test_arguments_that_could_not_act_are_refused():
    for variant in set(DPOVariant) - set(SMOOTHED):
        rule = rf"loss\.label_smoothing must be 0 for loss\.variant={variant.value}, .*, got 0\.1"
        with pytest.raises(ValueError, match=rule):
            DPOLoss(label_smoothing=0.1, variant=variant)
    for variant in NEEDS_SMOOTHING:
        with pytest.raises(ValueError, match=rf"loss\.label_smoothing must be > 0 for loss\.variant={variant.value}"):
            DPOLoss(variant=variant)
    with pytest.raises(
        ValueError,
        match=r"loss\.variant must be one of sigmoid, sigmoid_norm, robust, ipo, .*, discopop, aot, got 'kto'",
    ):
        DPOLoss(variant="kto")  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["rejected_logprobs", "ref_chosen_logprobs", "ref_rejected_logprobs"])
def test_wrong_shapes(argument):
    names = ("chosen_logprobs", "rejected_logprobs", "ref_chosen_logprobs", "ref_rejected_logprobs")
    tensors = {name: torch.zeros(2) for name in names} | {argument: torch.zeros(2, 1)}
    with pytest.raises(ValueError, match=rf"{argument} must have the shape of chosen_logprobs, got \[2, 1\] against"):
        DPOLoss()(**tensors)


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def exo(c: float, r: float, b: float) -> float:
    """KL(p || q) over two replies, p = softmax(b c, b r), q = (0.9, 0.1)."""
    p = math.exp(b * c) / (math.exp(b * c) + math.exp(b * r))
    return p * math.log(p / 0.9) + (1 - p) * math.log((1 - p) / 0.1)


def discopop(c: float, r: float, b: float) -> float:
    z = b * (c - r)
    mixed = s(z / 0.05)
    return (1 - mixed) * softplus(-z) + mixed * math.exp(-z)


BY_HAND: dict[DPOVariant, Callable[[float, float, float], float]] = {
    DPOVariant.sigmoid_norm: lambda c, r, b: softplus(-b * (c - r)),
    DPOVariant.exo_pair: exo,
    DPOVariant.nca_pair: lambda c, r, b: softplus(-b * c) + softplus(b * c) / 2 + softplus(b * r) / 2,
    DPOVariant.bco_pair: lambda c, r, b: softplus(-b * c) + softplus(b * r),
    DPOVariant.sppo_hard: lambda c, r, b: (c - 0.5 / b) ** 2 + (r + 0.5 / b) ** 2,
    DPOVariant.apo_zero: lambda c, r, b: 1 - s(b * c) + s(b * r),
    DPOVariant.apo_down: lambda c, r, b: s(b * c) + 1 - s(b * (c - r)),
    DPOVariant.discopop: discopop,
}


@pytest.mark.parametrize("variant", BY_HAND)
@pytest.mark.parametrize("beta", [0.05, 0.7])
@pytest.mark.parametrize("more", [None, 0, 1, 2, 3])
def test_variants_by_hand(variant: DPOVariant, beta: float, more: int | None) -> None:
    """And with one nat more in each of the four places."""
    logprobs = list(PAIR)
    if more is not None:
        logprobs[more] += 1.0
    c, r = logprobs[0] - logprobs[2], logprobs[1] - logprobs[3]
    loss = DPOLoss(beta=beta, variant=variant, label_smoothing=0.1 if variant in NEEDS_SMOOTHING else 0.0)
    assert loss_of(loss, *logprobs) == pytest.approx(BY_HAND[variant](c, r, beta), rel=1e-12)


def test_variants_at_numbers_worked_out() -> None:
    # beta = 1, c = log 3, r = -log 3: s(c) = 3/4, s(r) = 1/4, h = log 9: s(h) = 9/10.
    logprobs = (math.log(3), -math.log(3), 0.0, 0.0)

    def value(variant: DPOVariant, smoothing: float = 0.0) -> float:
        return loss_of(DPOLoss(beta=1.0, variant=variant, label_smoothing=smoothing), *logprobs)

    assert value(DPOVariant.apo_zero) == pytest.approx(1 / 4 + 1 / 4, rel=1e-12)
    assert value(DPOVariant.apo_down) == pytest.approx(3 / 4 + 1 / 10, rel=1e-12)
    assert value(DPOVariant.bco_pair) == pytest.approx(2 * math.log(4 / 3), rel=1e-12)
    assert value(DPOVariant.nca_pair) == pytest.approx(1.5 * math.log(4 / 3) + 0.5 * math.log(4), rel=1e-12)
    assert value(DPOVariant.sppo_hard) == pytest.approx(2 * (math.log(3) - 0.5) ** 2, rel=1e-12)
    # p = (9/10, 1/10): the KL to itself is 0, to (3/4, 1/4) it is 0.9 log(6/5) + 0.1 log(2/5).
    assert value(DPOVariant.exo_pair, 0.1) == pytest.approx(0.0, abs=1e-12)
    assert value(DPOVariant.exo_pair, 0.25) == pytest.approx(0.9 * math.log(1.2) + 0.1 * math.log(0.4), rel=1e-12)


def test_discopop_tau_sets_where_the_two_losses_meet() -> None:
    # tau = 1, beta h = log 3: 1/4 log(4/3) + 3/4 * 1/3.
    logprobs = (math.log(3), 0.0, 0.0, 0.0)
    loss = DPOLoss(beta=1.0, variant=DPOVariant.discopop, discopop_tau=1.0)
    assert loss_of(loss, *logprobs) == pytest.approx(math.log(4 / 3) / 4 + 1 / 4, rel=1e-12)


@pytest.mark.parametrize("variant", WITH_MARGIN)
def test_a_margin_is_taken_off(variant: DPOVariant) -> None:
    # beta h - 2 m = 0.3 - 2 * 0.4 = -0.5; at margin_scale 0 it is not read.
    tensors = [f64(each) for each in PAIR]
    scaled, unread = (DPOLoss(beta=0.1, variant=variant, margin_scale=each) for each in (2.0, 0.0))
    assert scaled(*tensors, margin=f64(0.4)).loss.mean().item() == pytest.approx(softplus(0.5), rel=1e-12)
    assert unread(*tensors, margin=f64(0.4)).loss.mean().item() == pytest.approx(softplus(-0.3), rel=1e-12)


@pytest.mark.parametrize("variant", [DPOVariant.sigmoid, DPOVariant.ipo])
def test_rpo_alpha_adds_the_likelihood(variant: DPOVariant) -> None:
    tensors, plain = [f64(each) for each in PAIR], loss_of(DPOLoss(variant=variant), *PAIR)
    output = DPOLoss(variant=variant, rpo_alpha=0.5)(*tensors, chosen_nll=f64(3.0))
    assert output.loss.mean().item() == pytest.approx(plain + 1.5, rel=1e-12)
    assert output.metrics["nll"].mean().item() == 3.0


def test_what_a_variant_has_no_use_for_or_lacks_is_refused() -> None:
    tensors = [f64(each) for each in PAIR]
    for loss in (DPOLoss(variant=DPOVariant.ipo), DPOLoss(label_smoothing=0.1)):
        with pytest.raises(
            ValueError, match=r"a margin goes with loss\.variant sigmoid and sigmoid_norm and .*=0, got"
        ):
            loss(*tensors, margin=f64(1.0))
    with pytest.raises(ValueError, match=r"loss\.margin_scale must be 1 \(or 0\) for pairs without one, got 2\.0"):
        DPOLoss(margin_scale=2.0)(*tensors)
    for loss, nll in ((DPOLoss(rpo_alpha=1.0), None), (DPOLoss(), f64(1.0))):
        with pytest.raises(ValueError, match=r"chosen_nll goes with loss\.rpo_alpha > 0, and only with it"):
            loss(*tensors, chosen_nll=nll)
    with pytest.raises(ValueError, match=r"margin must have the shape of chosen_logprobs, got \[2\] against \[1\]"):
        DPOLoss()(*tensors, margin=f64(1.0, 2.0))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("margin_scale", -1.0, "must be >= 0 and finite"),
        ("rpo_alpha", math.inf, "must be >= 0 and finite"),
        ("discopop_tau", 1.5, r"must be in \(0, 1\]"),
        ("discopop_tau", 0.1, r"goes with loss\.variant=discopop"),
    ],
)
def test_further_constants_out_of_range(key: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"loss\.{key} {rule}, got {value}"):
        DPOLoss(**{key: value})


def test_aot_compares_with_the_reference_of_another_pair() -> None:
    """beta = 0.5, e = 0.1: -0.9 log s(z) - 0.1 log s(-z), z = beta (h - d)."""
    loss = DPOLoss(beta=0.5, label_smoothing=0.1, variant=DPOVariant.aot)
    tensors = f64(-3.0, -4.0), f64(-5.0, -4.5), f64(-4.0, -4.0), f64(-4.5, -6.0)  # h = 1.5, -1.5
    found = loss(*tensors, shift=f64(1.5, -0.5)).loss.mean().item()  # as the reference's 0.5 and 2.0 change places
    z = 0.5 * (1.5 - 1.5), 0.5 * (-1.5 + 0.5)
    assert found == pytest.approx(sum(0.9 * softplus(-each) + 0.1 * softplus(each) for each in z) / 2, rel=1e-12)
    for variant, shift in ((DPOVariant.aot, None), (DPOVariant.sigmoid, f64(0.0, 0.0))):
        with pytest.raises(ValueError, match=r"^shift goes with loss\.variant=aot, and only with it$"):
            DPOLoss(variant=variant)(*tensors, shift=shift)


def test_pairs_of_weight_0_are_in_no_metric() -> None:
    """As those that fill up online DPO's last ranks, whose number depends on that of the processes."""
    loss = DPOLoss(rpo_alpha=0.5)
    pairs = [f64(value, -100.0) for value in PAIR]
    with_tie = loss(*pairs, chosen_nll=f64(2.0, 50.0), weight=f64(1.0, 0.0))
    alone = loss(*[f64(value) for value in PAIR], chosen_nll=f64(2.0))
    assert {name: m.mean().item() for name, m in with_tie.metrics.items()} == {
        name: m.mean().item() for name, m in alone.metrics.items()
    }
    assert with_tie.loss.mean().item() == alone.loss.mean().item()

"""L = -log sigmoid(r_c - r_r - margin_scale m) + center (r_c + r_r)^2 = log(1 + exp(-(r_c - r_r - s m))) + ..."""

import math

import pytest
import torch

from alignment.losses import MarginRankingLoss


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(loss: MarginRankingLoss, chosen: float, rejected: float, margin: float | None = None) -> float:
    m = None if margin is None else f64(margin)
    return loss(f64(chosen), f64(rejected), m).loss.mean().item()


def test_equal_rewards_cost_log_2():
    assert loss_of(MarginRankingLoss(), 0.7, 0.7) == pytest.approx(math.log(2), rel=1e-12)


def test_the_chosen_reward_is_the_one_that_should_be_higher():
    # log(1 + e^-2) for r_c - r_r = 2, log(1 + e^2) when the two are swapped.
    assert loss_of(MarginRankingLoss(), 3.0, 1.0) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-12)
    assert loss_of(MarginRankingLoss(), 1.0, 3.0) == pytest.approx(math.log(1 + math.exp(2)), rel=1e-12)


def test_the_margin_is_subtracted():
    # Equal rewards, m = 1/3: -log sigmoid(-1/3) = log(1 + e^{1/3}) = 0.8735; the wrong sign gives log(1 + e^{-1/3}).
    assert loss_of(MarginRankingLoss(), 1.0, 1.0, 1 / 3) == pytest.approx(math.log(1 + math.exp(1 / 3)), rel=1e-12)


def test_margin_scale_multiplies_the_margin():
    # r_c - r_r - 2 m = 2 - 2 * 1.5 = -1.
    assert loss_of(MarginRankingLoss(margin_scale=2.0), 3.0, 1.0, 1.5) == pytest.approx(math.log(1 + math.e), rel=1e-12)
    assert loss_of(MarginRankingLoss(margin_scale=0.0), 0.0, 0.0, 9.0) == pytest.approx(math.log(2), rel=1e-12)


def test_center_adds_the_squared_sum():
    # 0.01 (3 + 1)^2 = 0.16, on top of log(1 + e^-2); the difference (3 - 1)^2 would add 0.04.
    expected = math.log(1 + math.exp(-2)) + 0.16
    assert loss_of(MarginRankingLoss(center=0.01), 3.0, 1.0) == pytest.approx(expected, rel=1e-12)


def test_mean_over_pairs_and_split_invariance():
    chosen, rejected, margin = f64(1.0, -2.0, 0.5), f64(0.0, 1.0, 0.5), f64(0.0, 1.0, 3.0)
    loss = MarginRankingLoss(center=0.1)
    z = [1.0, -4.0, -3.0]
    expected = sum(math.log(1 + math.exp(-each)) for each in z) / 3 + 0.1 * (1 + 1 + 1) / 3
    whole = loss(chosen, rejected, margin).loss
    parts = loss(chosen[:1], rejected[:1], margin[:1]).loss + loss(chosen[1:], rejected[1:], margin[1:]).loss
    assert whole.mean().item() == pytest.approx(expected, rel=1e-12)
    assert parts.mean().item() == pytest.approx(expected, rel=1e-12)


def test_metrics_ignore_the_margin():
    metrics = MarginRankingLoss()(f64(2.0, 0.0), f64(1.0, 3.0), f64(9.0, 9.0)).metrics
    assert {name: metric.mean().item() for name, metric in metrics.items()} == {
        "rewards/chosen": 1.0,
        "rewards/rejected": 2.0,
        "rewards/margin": -1.0,
        "rewards/accuracy": 0.5,
    }


def test_gradcheck():
    inputs = [f64(0.3, -2.0, 1.0), f64(-0.4, 1.0, 1.0), f64(1 / 3, 1.0, 0.0)]
    for tensor in inputs:
        tensor.requires_grad_()
    loss = MarginRankingLoss(margin_scale=0.7, center=0.05)
    assert torch.autograd.gradcheck(lambda *tensors: loss(*tensors).loss.mean(), inputs)


def test_gradient_by_hand():
    # d/dr_c = -sigmoid(-(r_c - r_r - m)) + 2 center (r_c + r_r), d/dr_r = +sigmoid(...) + the same.
    chosen, rejected = f64(1.0).requires_grad_(), f64(0.5).requires_grad_()
    MarginRankingLoss(center=0.1)(chosen, rejected, f64(2.0)).loss.mean().backward()
    push = 1 / (1 + math.exp(-1.5))
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-push + 0.3, rel=1e-12)
    assert rejected.grad.item() == pytest.approx(push + 0.3, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extremes_are_finite(dtype, sign):
    chosen = torch.tensor([sign * 1e4, 0.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([-sign * 1e4, 0.0], dtype=dtype, requires_grad=True)
    loss = MarginRankingLoss(center=0.01)(chosen, rejected, torch.ones(2)).loss
    loss.mean().backward()
    assert loss.total.dtype == torch.float32 and loss.total.isfinite()
    assert chosen.grad is not None and chosen.grad.isfinite().all()
    assert rejected.grad is not None and rejected.grad.isfinite().all()


def test_bfloat16_rewards_are_compared_with_the_margin_in_float32():
    # 8 - 1/3 is not a bfloat16 number: the nearest is 7.65625.
    chosen, rejected = torch.tensor([8.0], dtype=torch.bfloat16), torch.tensor([0.0], dtype=torch.bfloat16)
    loss = MarginRankingLoss()(chosen, rejected, torch.tensor([1 / 3])).loss.mean().item()
    assert loss == pytest.approx(math.log(1 + math.exp(-(8 - 1 / 3))), rel=1e-5)


@pytest.mark.parametrize("key", ["margin_scale", "center"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_constants_out_of_range(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key} must be >= 0 and finite, got {value}"):
        MarginRankingLoss(**{key: value})


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"rejected_rewards must have the shape of chosen_rewards, got \[3\] against"):
        MarginRankingLoss()(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"margin must have the shape of chosen_rewards, got \[2, 1\] against \[2\]"):
        MarginRankingLoss()(torch.zeros(2), torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"chosen_rewards must have shape \[B\], got \[2, 1\]"):
        MarginRankingLoss()(torch.zeros(2, 1), torch.zeros(2, 1))


def test_a_scale_with_nothing_to_scale_is_refused():
    with pytest.raises(ValueError, match=r"loss\.margin_scale must be 1 \(or 0\) for pairs without a margin, got 2\.0"):
        MarginRankingLoss(margin_scale=2.0)(torch.zeros(2), torch.zeros(2))
    assert loss_of(MarginRankingLoss(margin_scale=0.0), 0.0, 0.0) == pytest.approx(math.log(2))


def test_scaled_weighs_the_pair_by_its_margin():
    # 3 log(1 + e^-2), the mean over both pairs: the second weighs 0, and its center term does not.
    scaled = MarginRankingLoss(variant="scaled", center=0.1)  # type: ignore[arg-type]
    expected = (3 * math.log(1 + math.exp(-2)) + 0.1 * (16 + 25)) / 2
    value = scaled(f64(3.0, 2.0), f64(1.0, 3.0), f64(3.0, 0.0)).loss
    assert value.mean().item() == pytest.approx(expected, rel=1e-12)
    swapped = scaled(f64(1.0), f64(3.0), f64(2.0)).loss
    assert swapped.mean().item() == pytest.approx(2 * math.log(1 + math.exp(2)) + 1.6, rel=1e-12)


def test_scaled_needs_margins_and_no_factor_on_them():
    with pytest.raises(ValueError, match=r"margin must be given for loss\.variant=scaled, got None"):
        MarginRankingLoss(variant="scaled")(torch.zeros(2), torch.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"loss\.margin_scale must be 1 for loss\.variant=scaled, got 0\.5"):
        MarginRankingLoss(variant="scaled", margin_scale=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"loss\.variant must be one of margin, scaled, got 'bt'"):
        MarginRankingLoss(variant="bt")  # type: ignore[arg-type]

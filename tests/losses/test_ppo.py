"""PolicyLoss: -min(r A, clamp(r, 0.8, 1.2) A).  ValueLoss: 1/2 max of the plain and the clipped squared error."""

import math

import pytest
import torch

from alignment.losses import ImportanceRatio, Normalization, PolicyLoss, ValueLoss


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def all_true(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.bool)


def policy_loss(ratio: float, advantage: float, clip: float = 0.2) -> float:
    logprobs, old_logprobs = f64(-5.0 + math.log(ratio)), f64(-5.0)
    return PolicyLoss(clip)(logprobs, old_logprobs, f64(advantage), all_true(1)).loss.mean().item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.1, 2.0, -2.2),  # inside the range: -r A
        (1.5, 2.0, -2.4),  # gain beyond 1.2 is not paid for: -1.2 A
        (0.5, 2.0, -1.0),  # a loss is felt in full: -0.5 A
        (1.5, -2.0, 3.0),  # a loss is felt in full: -1.5 A
        (0.5, -2.0, 1.6),  # gain below 0.8 is not paid for: -0.8 A
        (0.9, -2.0, 1.8),
    ],
)
def test_the_six_cases_of_the_clip(ratio, advantage, expected):
    assert policy_loss(ratio, advantage) == pytest.approx(expected, rel=1e-12)


def test_clip_sets_both_bounds():
    assert policy_loss(1.5, 2.0, clip=0.4) == pytest.approx(-2.8, rel=1e-12)
    assert policy_loss(0.5, -2.0, clip=0.4) == pytest.approx(1.2, rel=1e-12)


def test_first_inner_step_is_exact():
    torch.manual_seed(0)
    logprobs = (-3 * torch.rand(4, 6)).requires_grad_()
    advantages = torch.randn(4, 6)
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 5])[:, None]
    output = PolicyLoss()(logprobs, logprobs.detach().clone(), advantages, mask)
    output.loss.mean().backward()
    assert output.metrics["policy/ratio"].mean().item() == 1.0
    assert output.metrics["policy/clip_fraction"].mean().item() == 0.0
    assert output.metrics["policy/approx_kl"].mean().item() == 0.0
    assert output.loss.mean().item() == pytest.approx(-advantages[mask].double().mean().item(), rel=1e-5)
    # The gradient of the policy gradient theorem: -A_t / n on the counted tokens.
    torch.testing.assert_close(logprobs.grad, torch.where(mask, -advantages / 15, 0.0))


def test_a_higher_upper_bound_leaves_the_lower_one():
    loss = PolicyLoss(0.2, clip_high=0.4)

    def of(ratio: float, advantage: float) -> float:
        return loss(f64(math.log(ratio)), f64(0.0), f64(advantage), all_true(1)).loss.mean().item()

    assert of(1.5, 2.0) == pytest.approx(-2.8, rel=1e-12) and of(1.3, 2.0) == pytest.approx(-2.6, rel=1e-12)
    assert of(0.5, -2.0) == pytest.approx(1.6, rel=1e-12) and of(1.5, -2.0) == pytest.approx(3.0, rel=1e-12)


def replies() -> tuple[torch.Tensor, ...]:
    """Two replies of 3 tokens and 1: log-ratios, zeros, advantages, mask; what does not count is NaN."""
    nan = math.nan
    log_ratios = f64(0.1, -0.3, 0.05, 0.15, nan, nan).view(2, 3)
    return log_ratios, torch.zeros(2, 3).double(), f64(1, 1, 1, -2, nan, nan).view(2, 3), ~log_ratios.isnan()


def test_normalizations_by_hand():
    arguments = replies()
    terms = [
        -min(math.exp(x), 1.2) if x > 0 else -math.exp(x) for x in (0.1, -0.3, 0.05)
    ]  # the clip at 0.8 is felt: no
    other = 2 * math.exp(0.15)
    expected = {
        Normalization.token: (sum(terms) + other) / 4,
        Normalization.sequence: (sum(terms) / 3 + other) / 2,
        Normalization.constant: (sum(terms) / 8 + other / 8) / 2,
    }
    for normalization, value in expected.items():
        length = 8 if normalization is Normalization.constant else None
        output = PolicyLoss(normalization=normalization, length=length)(*arguments)
        assert output.loss.mean().item() == pytest.approx(value, rel=1e-12), normalization
        assert output.loss.count.item() == (4 if normalization is Normalization.token else 2)


@pytest.mark.parametrize(("ratio", "of_first"), [("sequence", -0.05), ("product", -0.15)])
def test_one_ratio_for_a_reply_by_hand(ratio, of_first):
    log_ratios, old, advantages, mask = replies()
    log_ratios.requires_grad_()
    loss = PolicyLoss(ratio=ImportanceRatio(ratio), normalization=Normalization.sequence)
    output = loss(log_ratios, old, advantages, mask)
    assert output.loss.mean().item() == pytest.approx((-math.exp(of_first) + 2 * math.exp(0.15)) / 2, rel=1e-12)
    output.loss.mean().backward()
    weight = 1 / 3 if ratio == "sequence" else 1.0  # of each of the first reply's three tokens in its log-ratio
    expected = [-weight * math.exp(of_first) / 2] * 3 + [math.exp(0.15), 0.0, 0.0]
    assert log_ratios.grad is not None
    assert log_ratios.grad.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_settings_of_the_policy_loss_that_do_not_go_together():
    for settings, told in (
        ({"clip_high": 0.1}, "clip_high must be >= clip"),
        ({"ratio": "sequence"}, "normalization must be sequence with ratio=sequence, got token"),
        ({"ratio": "product", "normalization": "constant"}, "with ratio=product, got constant"),
        ({"length": 5}, "length must be > 0 and needs normalization=constant"),
        ({"normalization": "none"}, "normalization must be one of token, sequence, constant"),
    ):
        with pytest.raises(ValueError, match=told):
            PolicyLoss(**settings)
    flat = [values.flatten() for values in replies()]
    with pytest.raises(ValueError, match=r"needs \[replies, T\], got \[6\]"):
        PolicyLoss(normalization=Normalization.sequence)(*flat)
    with pytest.raises(ValueError, match="needs length"):
        PolicyLoss(normalization=Normalization.constant)(*replies())


def test_gradient_vanishes_exactly_where_the_clip_took_it():
    logprobs = f64(*(math.log(ratio) for ratio in (1.5, 0.5, 1.5, 0.5))).requires_grad_()
    PolicyLoss()(logprobs, torch.zeros(4).double(), f64(1, 1, -1, -1), all_true(4)).loss.total.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, -0.5, 1.5, 0.0], rel=1e-12)


def test_policy_metrics_by_hand():
    # Ratios 1.5 (A > 0: clipped), 1.5 (A < 0: not), 0.9, and one token that does not count.
    ratios = (1.5, 1.5, 0.9)
    logprobs, old_logprobs = f64(*(math.log(ratio) for ratio in ratios), 9.0), torch.zeros(4).double()
    mask = torch.tensor([True, True, True, False])
    metrics = PolicyLoss()(logprobs, old_logprobs, f64(1, -1, 1, 1), mask).metrics
    approx_kl = sum(ratio - 1 - math.log(ratio) for ratio in ratios) / 3
    assert {name: metric.mean().item() for name, metric in metrics.items()} == {
        "policy/clip_fraction": pytest.approx(1 / 3),
        "policy/approx_kl": pytest.approx(approx_kl, rel=1e-12),
        "policy/ratio": pytest.approx(3.9 / 3, rel=1e-12),
    }


def test_policy_gradcheck():
    # Ratios 0.5, 0.9, 1.1, 1.5 under advantages of both signs: every branch, no kink.
    ratios = f64(0.5, 0.9, 1.1, 1.5, 0.5, 0.9, 1.1, 1.5).log()
    old_logprobs = torch.linspace(-4, -3, 8, dtype=torch.float64)
    inputs = [old_logprobs + ratios, old_logprobs, f64(1, 2, 3, 4, -1, -2, -3, -4)]
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    mask = torch.tensor([True] * 7 + [False])
    assert torch.autograd.gradcheck(lambda *tensors: PolicyLoss()(*tensors, mask).loss.mean(), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_policy_extremes_are_finite(dtype):
    logprobs = torch.tensor([0.0, 0.0, -1e4, -1e4, float("nan")], dtype=dtype, requires_grad=True)
    old_logprobs = torch.tensor([-1e4, -1e4, 0.0, 0.0, 0.0], dtype=dtype)
    advantages = torch.tensor([1e4, -1e4, 1e4, -1e4, float("inf")], dtype=dtype)
    output = PolicyLoss()(logprobs, old_logprobs, advantages, torch.tensor([True] * 4 + [False]))
    output.loss.mean().backward()
    assert output.loss.total.dtype == torch.float32 and output.loss.total.isfinite()
    assert all(metric.total.isfinite() for metric in output.metrics.values())
    assert logprobs.grad is not None and logprobs.grad.isfinite().all()
    assert logprobs.grad[-1].item() == 0.0


@pytest.mark.parametrize("clip", [0.0, -0.2, 1.0, math.nan])
def test_policy_clip_out_of_range(clip):
    with pytest.raises(ValueError, match=rf"clip must be in \(0, 1\), got {clip}"):
        PolicyLoss(clip)


@pytest.mark.parametrize(
    ("value", "old", "target", "expected"),
    [
        (1.1, 1.0, 2.0, 0.5 * 0.9**2),  # moved by less than the clip
        (1.5, 1.0, 2.0, 0.5 * 0.8**2),  # moved towards the return by more: the clipped value 1.2 counts
        (0.5, 1.0, 2.0, 0.5 * 1.5**2),  # moved away: the plain error is the larger
        (0.5, 1.0, 0.0, 0.5 * 0.8**2),  # towards, from above: the clipped value 0.8 counts
    ],
)
def test_the_value_clip(value, old, target, expected):
    loss = ValueLoss(clip=0.2)(f64(value), f64(old), f64(target), all_true(1)).loss.mean().item()
    assert loss == pytest.approx(expected, rel=1e-12)


def test_value_clip_width_and_none():
    # V = 1.5, V_old = 1, R = 2: clip 0.4 counts 1.4, no clip counts 1.5.
    arguments = f64(1.5), f64(1.0), f64(2.0), all_true(1)
    assert ValueLoss(clip=0.4)(*arguments).loss.mean().item() == pytest.approx(0.5 * 0.6**2, rel=1e-12)
    assert ValueLoss(clip=None)(*arguments).loss.mean().item() == pytest.approx(0.5 * 0.5**2, rel=1e-12)
    assert ValueLoss(clip=None)(*arguments).metrics["value/clip_fraction"].mean().item() == 0.0


def test_value_metrics_by_hand():
    values, old_values, returns = f64(1.5, 0.5, 1.0, 99.0), f64(1.0, 1.0, 1.0, 0.0), f64(2.0, 2.0, 3.0, 0.0)
    metrics = ValueLoss()(values, old_values, returns, torch.tensor([True, True, True, False])).metrics
    assert {name: metric.mean().item() for name, metric in metrics.items()} == {
        "value/mean": pytest.approx(1.0),
        "value/error": pytest.approx((0.25 + 2.25 + 4.0) / 3),
        "value/drift": pytest.approx(1 / 3),
        "value/clip_fraction": pytest.approx(1 / 3),
    }


def test_value_gradient_by_hand():
    # (V - R) / n where the plain error counts, 0 where the clipped one does.
    values = f64(1.1, 1.5, 0.5).requires_grad_()
    ValueLoss()(values, f64(1, 1, 1), f64(2, 2, 2), all_true(3)).loss.mean().backward()
    assert values.grad is not None and values.grad.tolist() == pytest.approx([-0.3, 0.0, -0.5], rel=1e-12)


@pytest.mark.parametrize("clip", [0.2, None])
def test_value_gradcheck(clip):
    inputs = [f64(1.1, 1.5, 0.5, 7.0), f64(1.0, 1.0, 1.0, 0.0), f64(2.0, 2.0, 2.0, 3.0)]
    for tensor in inputs:
        tensor.requires_grad_()
    mask = torch.tensor([True, True, True, False])
    assert torch.autograd.gradcheck(lambda *tensors: ValueLoss(clip)(*tensors, mask).loss.mean(), inputs)


@pytest.mark.parametrize("clip", [0.2, None])
def test_value_extremes_are_finite(clip):
    values = torch.tensor([1e4, -1e4, float("nan")], dtype=torch.bfloat16, requires_grad=True)
    returns = torch.tensor([-1e4, 1e4, 0.0], dtype=torch.bfloat16)
    loss = ValueLoss(clip)(values, returns, returns, torch.tensor([True, True, False])).loss
    loss.mean().backward()
    assert loss.total.dtype == torch.float32 and loss.total.isfinite()
    assert values.grad is not None and values.grad.isfinite().all() and values.grad[-1].item() == 0.0


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan])
def test_value_clip_out_of_range(clip):
    with pytest.raises(ValueError, match=rf"clip must be > 0 and finite, or null for no clipping, got {clip}"):
        ValueLoss(clip)


@pytest.mark.parametrize("loss", [PolicyLoss(), ValueLoss()])
def test_split_invariance_over_ragged_rows(loss):
    torch.manual_seed(0)
    tensors = [torch.randn(5, 4, dtype=torch.float64) for _ in range(3)]
    mask = torch.arange(4) < torch.tensor([4, 1, 2, 0, 3])[:, None]
    whole = loss(*tensors, mask)
    first, rest = loss(*(each[:2] for each in tensors), mask[:2]), loss(*(each[2:] for each in tensors), mask[2:])
    assert (first.loss + rest.loss).mean().item() == pytest.approx(whole.loss.mean().item(), rel=1e-12)
    for name, metric in whole.metrics.items():
        parts = first.metrics[name] + rest.metrics[name]
        assert parts.mean().item() == pytest.approx(metric.mean().item(), rel=1e-12), name


@pytest.mark.parametrize("loss", [PolicyLoss(), ValueLoss()])
def test_wrong_shapes(loss):
    values, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask must have the shape of \w+, got \[2, 1\] against \[2, 3\]"):
        loss(values, values, values, mask[:, :1])
    with pytest.raises(ValueError, match=r"old_\w+ must have the shape of \w+, got \[2, 1\] against \[2, 3\]"):
        loss(values, values[:, :1], values, mask)
    with pytest.raises(
        ValueError, match=r"(advantages|returns) must have the shape of \w+, got \[2\] against \[2, 3\]"
    ):
        loss(values, values, values[:, 0], mask)
    with pytest.raises(ValueError, match=r"mask must be torch.bool"):
        loss(values, values, values, mask.float())

"""KTOLoss: w (1 - sigma(+-beta (h - z))), by hand."""

import math

import pytest
import torch

from alignment.losses import KTOLoss


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


GOOD = torch.tensor([True, False, True])


def test_by_hand():
    loss = KTOLoss(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    output = loss(f64(-4, -5, -6), f64(-5, -3, -6.5), GOOD, torch.tensor(0.25).double())
    terms = [2 * (1 - sigma(0.5 * 0.75)), 3 * (1 - sigma(0.5 * 2.25)), 2 * (1 - sigma(0.5 * 0.25))]
    assert output.loss.total.item() == pytest.approx(sum(terms), rel=1e-12) and output.loss.count.item() == 3
    assert output.metrics["rewards/chosen"].mean().item() == pytest.approx(0.5 * (1 + 0.5) / 2, rel=1e-12)
    assert output.metrics["rewards/rejected"].mean().item() == pytest.approx(-1.0, rel=1e-12)
    assert output.metrics["kl"].mean().item() == 0.25


@pytest.mark.parametrize(("variant", "baseline"), [("kto", -3.0), ("apo_zero_unpaired", 5.0)])
def test_a_baseline_below_zero_and_that_of_apo_are_zero(variant, baseline):
    arguments = f64(-4, -5, -6), f64(-5, -3, -6.5), GOOD
    found = KTOLoss(variant=variant)(*arguments, torch.tensor(baseline).double())
    wanted = KTOLoss()(*arguments, torch.tensor(0.0).double())
    assert found.loss.total.item() == wanted.loss.total.item() and found.metrics["kl"].total.item() == 0


def test_gradients_raise_the_good_and_lower_the_bad_and_the_baseline_has_none():
    logprobs, baseline = f64(-4, -5, -6).requires_grad_(), torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    KTOLoss(beta=0.5)(logprobs, f64(-5, -3, -6.5), GOOD, baseline).loss.total.backward()
    slopes = [0.5 * sigma(x) * sigma(-x) for x in (0.5 * 0.75, 0.5 * 2.25, 0.5 * 0.25)]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-slopes[0], slopes[1], -slopes[2]], rel=1e-12)
    assert baseline.grad is None


def test_a_weight_of_two_is_the_reply_twice():
    logprobs, reference, twice = f64(-4, -5, -6), f64(-5, -3, -6.5), torch.tensor([0, 1, 1, 2])
    baseline = torch.tensor(0.25).double()
    weighted = KTOLoss()(logprobs, reference, GOOD, baseline, weight=f64(1, 2, 1)).loss
    repeated = KTOLoss()(logprobs[twice], reference[twice], GOOD[twice], baseline).loss
    assert weighted.total.item() == pytest.approx(repeated.total.item(), rel=1e-12)
    assert weighted.count.item() == repeated.count.item() == 4


def test_errors():
    three = f64(1, 2, 3)
    with pytest.raises(ValueError, match=r"desirable must have the shape of logprobs, got \[2\] against \[3\]"):
        KTOLoss()(three, three, GOOD[:2], torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"torch\.bool"):
        KTOLoss()(three, three, GOOD.long(), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"baseline must be a scalar, got \[3\]"):
        KTOLoss()(three, three, GOOD, three)
    for settings, told in (
        ({"beta": 0.0}, "beta must be > 0"),
        ({"desirable_weight": 0.0}, "desirable_weight must be > 0"),
        ({"undesirable_weight": math.inf}, "undesirable_weight must be > 0 and finite"),
        ({"variant": "bco"}, "variant must be one of kto, apo_zero_unpaired"),
    ):
        with pytest.raises(ValueError, match=told):
            KTOLoss(**settings)

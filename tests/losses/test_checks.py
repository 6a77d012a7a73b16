"""Every loss refuses what would broadcast, and computes in at least float32."""

import pytest
import torch

from alignment.losses.checks import at_least_float32, counted, member, pairwise
from alignment.losses.kl import KLEstimator


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_becomes_float32_and_float64_stays(given, expected):
    values = torch.ones(2, dtype=given)
    assert at_least_float32(values).dtype == expected
    assert pairwise(values=values)[0].dtype == expected
    assert counted(torch.ones(2, dtype=torch.bool), values=values)[0].dtype == expected


def test_pairwise_keeps_the_order():
    left, right = pairwise(left=torch.tensor([1.0]), right=torch.tensor([2.0]))
    assert (left.item(), right.item()) == (1.0, 2.0)


def test_a_column_against_a_row_is_refused():
    with pytest.raises(ValueError, match=r"right must have the shape of left, got \[3, 1\] against \[3\]"):
        pairwise(left=torch.ones(3), right=torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"left must have shape \[B\], got \[3, 1\]"):
        pairwise(left=torch.ones(3, 1), right=torch.ones(3, 1))


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"right must be floating point, got torch.int64"):
        pairwise(left=torch.ones(3), right=torch.ones(3, dtype=torch.int64))


def test_counted_refuses_masks_of_another_shape_or_dtype():
    values = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"mask must have the shape of values, got \[2, 1\] against \[2, 3\]"):
        counted(torch.ones(2, 1, dtype=torch.bool), values=values)
    with pytest.raises(ValueError, match=r"mask must be torch.bool \(True = counts\), got torch.int64"):
        counted(torch.ones(2, 3, dtype=torch.int64), values=values)
    with pytest.raises(ValueError, match=r"other must have the shape of values, got \[3\] against \[2, 3\]"):
        counted(torch.ones(2, 3, dtype=torch.bool), values=values, other=torch.ones(3))


def test_counted_keeps_nan_out_of_value_and_gradient():
    values = torch.tensor([2.0, float("nan"), float("inf")], requires_grad=True)
    (kept,) = counted(torch.tensor([True, False, False]), values=values)
    kept.square().sum().backward()
    assert kept.tolist() == [2.0, 0.0, 0.0]
    assert values.grad is not None and values.grad.tolist() == [4.0, 0.0, 0.0]


def test_member_takes_the_enum_or_its_name_and_lists_the_choices():
    assert member(KLEstimator, "estimator", "k2") is KLEstimator.k2
    assert member(KLEstimator, "estimator", KLEstimator.k3) is KLEstimator.k3
    with pytest.raises(ValueError, match=r"estimator must be one of k1, k2, k3, got 'k4'"):
        member(KLEstimator, "estimator", "k4")

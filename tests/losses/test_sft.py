"""L = -log pi(y_t), mean over counted tokens."""

import math

import pytest
import torch

from alignment.losses import CrossEntropyLoss


def test_value_by_hand_with_ragged_rows():
    # Counted probabilities 1/2, 1/4, 1/8: -(log 1/2 + log 1/4 + log 1/8) / 3 = (1 + 2 + 3) log 2 / 3 = 2 log 2.
    logprobs = torch.tensor([[0.5, 0.25, 0.9], [0.125, 0.9, 0.9]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    output = CrossEntropyLoss()(logprobs, mask)
    assert output.loss.mean().item() == pytest.approx(2 * math.log(2), rel=1e-12)
    assert output.loss.count.item() == 3
    assert output.metrics["logps/token"].mean().item() == pytest.approx(-2 * math.log(2), rel=1e-12)
    assert set(output.metrics) == {"logps/token"}


def test_weighted_value_by_hand():
    # (2 log 2 + 2 log 4 + 5 log 8) / (2 + 2 + 5) = (2 + 4 + 15) log 2 / 9.
    logprobs = torch.tensor([[0.5, 0.25, 0.9], [0.125, 0.9, 0.9]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    output = CrossEntropyLoss()(logprobs, mask, torch.tensor([[2.0], [5.0]]).expand(2, 3))
    assert output.loss.mean().item() == pytest.approx(21 / 9 * math.log(2), rel=1e-12)
    assert output.loss.count.item() == 9
    assert output.metrics["logps/token"].mean().item() == pytest.approx(-2 * math.log(2), rel=1e-12)


def test_gradient_is_minus_one_over_the_count_on_counted_tokens_only():
    logprobs = torch.tensor([-1.0, -2.0, float("-inf"), -3.0], requires_grad=True)
    CrossEntropyLoss()(logprobs, torch.tensor([True, True, False, False])).loss.mean().backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [-0.5, -0.5, 0.0, 0.0]


def test_flat_and_nested_shapes_agree():
    logprobs = -torch.arange(12, dtype=torch.float64)
    mask = torch.arange(12) % 3 != 0
    flat = CrossEntropyLoss()(logprobs, mask).loss
    nested = CrossEntropyLoss()(logprobs.view(2, 2, 3), mask.view(2, 2, 3)).loss
    assert flat.mean().item() == nested.mean().item() == pytest.approx((1 + 2 + 4 + 5 + 7 + 8 + 10 + 11) / 8)


def test_gradcheck():
    logprobs = torch.tensor([[-0.1, -3.0], [-7.0, -0.5]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True], [False, True]])
    assert torch.autograd.gradcheck(lambda x: CrossEntropyLoss()(x, mask).loss.mean(), logprobs)


def test_bfloat16_extremes_are_summed_in_float32():
    # 300 tokens of -1 beside one of -1e4: in bfloat16 (spacing 64 at 1e4) the ones would vanish.
    logprobs = torch.full((301,), -1.0, dtype=torch.bfloat16)
    logprobs[0] = -9984.0  # the bfloat16 nearest to -1e4
    logprobs.requires_grad_()
    loss = CrossEntropyLoss()(logprobs, torch.ones(301, dtype=torch.bool)).loss
    loss.mean().backward()
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == 10284.0
    assert logprobs.grad is not None and logprobs.grad.isfinite().all()


def test_wrong_shapes_and_dtypes():
    with pytest.raises(ValueError, match=r"mask must have the shape of logprobs, got \[3\] against \[2, 3\]"):
        CrossEntropyLoss()(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be torch.bool"):
        CrossEntropyLoss()(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"weight must have the shape of logprobs, got \[3\] against \[2, 3\]"):
        CrossEntropyLoss()(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(3))
    with pytest.raises(ValueError, match=r"logprobs must be floating point"):
        CrossEntropyLoss()(torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool))

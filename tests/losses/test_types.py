"""Mean: totals and counts add, whatever the split."""

import pytest
import torch

from alignment.losses import LossOutput, Mean
from alignment.losses.preference import mean_over_pairs


def test_mean_of_all_values():
    mean = Mean.of(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert (mean.total.item(), mean.count.item(), mean.mean().item()) == (12.0, 4, 3.0)


def test_mean_of_counted_values_ignores_nan_outside():
    values = torch.tensor([[1.0, float("nan")], [3.0, float("inf")]])
    mean = Mean.of(values, torch.tensor([[True, False], [True, False]]))
    assert (mean.total.item(), mean.count.item(), mean.mean().item()) == (4.0, 2, 2.0)


def test_mean_of_bool_is_a_share():
    assert Mean.of(torch.tensor([True, False, False, True, True])).mean().item() == pytest.approx(0.6)


def test_sum_of_parts_is_the_whole_where_the_mean_of_means_is_not():
    # 1 + 5 tokens: the whole is (10 + 1+2+3+4+5) / 6 = 25/6, the mean of the two means is (10 + 3) / 2 = 6.5.
    short, long = torch.tensor([10.0]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    parts = Mean.of(short) + Mean.of(long)
    assert parts.mean().item() == pytest.approx(25 / 6)
    assert parts.mean().item() == pytest.approx(Mean.of(torch.cat([short, long])).mean().item())


@pytest.mark.parametrize("cuts", [[8], [1, 7], [3, 3, 2], [1] * 8])
def test_any_split_of_ragged_rows_gives_the_same_value_and_gradient(cuts):
    torch.manual_seed(0)
    values = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(5) < torch.tensor([5, 1, 0, 3, 2, 4, 1, 5])[:, None]
    whole = Mean.of(values.square(), mask).mean()
    (expected,) = torch.autograd.grad(whole, values)

    rows = zip(values.split(cuts), mask.split(cuts), strict=True)
    first, *others = [Mean.of(part.square(), part_mask) for part, part_mask in rows]
    total = first
    for other in others:
        total = total + other
    (gradient,) = torch.autograd.grad(total.mean(), values)

    assert total.count.item() == 21
    torch.testing.assert_close(total.mean(), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_an_empty_mean_is_zero_and_keeps_its_graph():
    values = torch.tensor([3.0, 4.0], requires_grad=True)
    empty = Mean.of(values, torch.tensor([False, False])).mean()
    empty.backward()
    assert empty.item() == 0.0
    assert values.grad is not None and values.grad.tolist() == [0.0, 0.0]
    assert Mean.of(torch.zeros(0)).mean().item() == 0.0


def test_half_is_summed_in_float32():
    # 4096 + 1 is not representable in float16, whose sum would stay at 2048 or round.
    mean = Mean.of(torch.ones(4097, dtype=torch.float16))
    assert mean.total.dtype == torch.float32
    assert mean.total.item() == 4097.0
    assert Mean.of(torch.ones(3, dtype=torch.float64)).total.dtype == torch.float64


def test_mean_refuses_wrong_masks():
    with pytest.raises(ValueError, match=r"mask must have the shape of values, got \[3\] against \[2, 3\]"):
        Mean.of(torch.ones(2, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be torch.bool"):
        Mean.of(torch.ones(3), torch.ones(3))


def test_detach_drops_the_graph_and_keeps_the_numbers():
    mean = Mean.of(torch.tensor([1.0, 3.0], requires_grad=True))
    assert mean.total.requires_grad
    assert not mean.detach().total.requires_grad
    assert mean.detach().mean().item() == 2.0


def test_loss_output_detaches_metrics_and_not_the_loss():
    mean = Mean.of(torch.tensor([1.0], requires_grad=True))
    output = LossOutput(loss=mean, metrics={"name": mean})
    assert output.loss.total.requires_grad
    assert not output.metrics["name"].total.requires_grad


def test_a_lone_value_of_any_weight_has_itself_as_its_mean():
    """Weights may add up to less than 1."""
    assert mean_over_pairs(torch.tensor([0.5]), torch.tensor([0.25])).mean().item() == 0.5
    assert Mean(torch.tensor(0.0), torch.tensor(0.0)).mean().item() == 0

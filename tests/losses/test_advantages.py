"""Token rewards, generalised advantage estimation and whitening, against plain Python."""

import math

import numpy as np
import pytest
import torch

from alignment.losses import (
    advantages_and_returns,
    discounted_returns,
    dr_grpo_advantages,
    grpo_advantages,
    moments,
    rloo_advantages,
    token_rewards,
    whiten,
)


def f64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def runs(starts: list[int], ends: list[int], width: int) -> torch.Tensor:
    """[B, T] bool, True from `starts` up to and without `ends`."""
    positions = torch.arange(width)
    return (positions >= torch.tensor(starts)[:, None]) & (positions < torch.tensor(ends)[:, None])


def plain_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The definition, O(T^2): A_t = sum_l (gamma lam)^l delta_{t+l}, with V = 0 after the last token."""
    following = [*values, 0.0][1:]
    delta = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(delta))) for t in range(len(delta))]


def test_token_rewards_by_hand():
    # Row 1: three tokens, score 2 on the third; row 2: one token that takes both; KL outside the mask is garbage.
    kl = f64([[0.5, -1.0, 2.0, math.nan], [3.0, math.inf, 7.0, 7.0]])
    mask = runs([0, 0], [3, 1], 4)
    rewards = token_rewards(f64([2.0, -1.0]), kl, mask, kl_weight=0.1)
    assert rewards[0].tolist() == pytest.approx([-0.05, 0.1, 2.0 - 0.2, 0.0])
    assert rewards[1].tolist() == pytest.approx([-1.0 - 0.3, 0.0, 0.0, 0.0])


def test_kl_weight_scales_the_penalty_only():
    scores, kl, mask = f64([1.0]), f64([[1.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert token_rewards(scores, kl, mask, kl_weight=0.0).tolist() == [[0.0, 1.0]]
    assert token_rewards(scores, kl, mask, kl_weight=0.5).tolist() == [[-0.5, 0.5]]


def test_the_score_lands_on_the_last_counted_token_of_rows_that_start_anywhere():
    mask = runs([0, 1, 2], [4, 3, 4], 4)
    rewards = token_rewards(f64([1.0, 2.0, 3.0]), torch.zeros(3, 4).double(), mask, kl_weight=1.0)
    assert rewards.tolist() == [[0, 0, 0, 1.0], [0, 0, 2.0, 0], [0, 0, 0, 3.0]]


def test_token_rewards_carry_no_graph_and_full_precision():
    kl = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    scores = torch.tensor([1e4], requires_grad=True)
    rewards = token_rewards(scores, kl, torch.ones(1, 2, dtype=torch.bool), kl_weight=0.1)
    assert rewards.dtype == torch.float32 and not rewards.requires_grad
    assert rewards[0, 1].item() == 1e4


def test_token_rewards_errors():
    scores, kl, mask = torch.zeros(2), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"kl_weight must be >= 0 and finite, got -0\.1"):
        token_rewards(scores, kl, mask, kl_weight=-0.1)
    with pytest.raises(ValueError, match=r"mask must count a token in every row to score, row 1 has none"):
        token_rewards(scores, kl, runs([0, 0], [3, 0], 3), kl_weight=0.1)
    with pytest.raises(ValueError, match=r"mask must have the shape of kl, got \[2, 3\] against \[2, 1\]"):
        token_rewards(scores, kl[:, :1], mask, kl_weight=0.1)
    with pytest.raises(ValueError, match=r"scores must have shape \[B\], got \[2, 1\]"):
        token_rewards(scores[:, None], kl, mask, kl_weight=0.1)
    with pytest.raises(ValueError, match=r"scores must have one entry per row of mask, got \[1\] for \[2, 3\]"):
        token_rewards(scores[:1], kl, mask, kl_weight=0.1)
    with pytest.raises(ValueError, match=r"mask must have shape \[B, T\], got \[3\]"):
        token_rewards(scores, kl[0], mask[0], kl_weight=0.1)


def test_gae_by_hand():
    # r = 0, 0, 1; V = 0.5, 0.4, 0.2; gamma = 0.9, lam = 0.5.
    # delta_2 = 1 - 0.2 = 0.8; delta_1 = 0.9 * 0.2 - 0.4 = -0.22; delta_0 = 0.9 * 0.4 - 0.5 = -0.14
    # A_2 = 0.8; A_1 = -0.22 + 0.45 * 0.8 = 0.14; A_0 = -0.14 + 0.45 * 0.14 = -0.077
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = advantages_and_returns(f64([[0, 0, 1.0]]), f64([[0.5, 0.4, 0.2]]), mask, gamma=0.9, lam=0.5)
    assert advantages[0].tolist() == pytest.approx([-0.077, 0.14, 0.8], rel=1e-12)
    assert returns[0].tolist() == pytest.approx([0.423, 0.54, 1.0], rel=1e-12)


def test_lam_one_is_monte_carlo_and_lam_zero_one_step():
    rewards, values, mask = f64([[1.0, 2.0, 4.0]]), f64([[3.0, 5.0, 7.0]]), torch.ones(1, 3, dtype=torch.bool)
    # lam = 1: returns are the discounted sums 1 + 2/2 + 4/4 = 3, 2 + 4/2 = 4, 4, whatever the values.
    _, returns = advantages_and_returns(rewards, values, mask, gamma=0.5, lam=1.0)
    assert returns[0].tolist() == pytest.approx([3.0, 4.0, 4.0])
    # lam = 0: returns are r_t + gamma V_{t+1}: 1 + 2.5, 2 + 3.5, 4.
    _, returns = advantages_and_returns(rewards, values, mask, gamma=0.5, lam=0.0)
    assert returns[0].tolist() == pytest.approx([3.5, 5.5, 4.0])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.97, 1.0), (0.9, 0.8), (1.0, 1.0), (0.0, 0.5), (0.7, 0.0)])
def test_gae_against_its_definition_on_ragged_rows(gamma, lam):
    torch.manual_seed(0)
    starts, ends, width = [0, 0, 3, 6, 2], [8, 3, 8, 7, 2], 8  # full, right-padded, left-padded, one token, none
    rewards, values = torch.randn(5, width, dtype=torch.float64), torch.randn(5, width, dtype=torch.float64)
    mask = runs(starts, ends, width)
    rewards[~mask] = values[~mask] = math.nan
    advantages, returns = advantages_and_returns(rewards, values, mask, gamma=gamma, lam=lam)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        inside = slice(start, end)
        expected = plain_gae(rewards[row, inside].tolist(), values[row, inside].tolist(), gamma, lam)
        assert advantages[row, inside].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)
        totals = [a + v for a, v in zip(expected, values[row, inside].tolist(), strict=True)]
        assert returns[row, inside].tolist() == pytest.approx(totals, rel=1e-10, abs=1e-12)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_gae_carries_no_graph_and_stays_finite():
    rewards = torch.tensor([[1e4, -1e4, 1e4]], dtype=torch.bfloat16, requires_grad=True)
    values = torch.tensor([[-1e4, 1e4, -1e4]], dtype=torch.bfloat16, requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    for result in advantages_and_returns(rewards, values, mask, gamma=1.0, lam=1.0):
        assert result.dtype == torch.float32 and result.isfinite().all() and not result.requires_grad


def test_gae_leaves_its_inputs_alone():
    rewards, values, mask = torch.ones(1, 3), torch.ones(1, 3), runs([0], [2], 3)
    advantages_and_returns(rewards, values, mask, gamma=1.0, lam=0.9)
    assert (rewards == 1).all() and (values == 1).all()


@pytest.mark.parametrize("hole", [[True, False, True], [False, True, False, True]])
def test_gae_refuses_a_mask_with_a_hole(hole):
    mask = torch.tensor([[True] * len(hole), hole])
    zeros = torch.zeros(mask.shape)
    with pytest.raises(ValueError, match=r"mask must be one run of True in each row, row 1 has a hole"):
        advantages_and_returns(zeros, zeros, mask, gamma=1.0, lam=0.95)


def test_gae_errors():
    zeros, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\], got 1\.1"):
        advantages_and_returns(zeros, zeros, mask, gamma=1.1, lam=0.95)
    with pytest.raises(ValueError, match=r"lam must be in \[0, 1\], got -0\.5"):
        advantages_and_returns(zeros, zeros, mask, gamma=1.0, lam=-0.5)
    with pytest.raises(ValueError, match=r"values must have the shape of rewards, got \[2, 4\] against \[2, 3\]"):
        advantages_and_returns(zeros, torch.zeros(2, 4), mask, gamma=1.0, lam=0.95)
    with pytest.raises(ValueError, match=r"mask must have shape \[B, T\], got \[3\]"):
        advantages_and_returns(zeros[0], zeros[0], mask[0], gamma=1.0, lam=0.95)


@pytest.mark.parametrize("zero_mean", [True, False])
def test_whiten_against_numpy(zero_mean):
    torch.manual_seed(0)
    values = 3 + 5 * torch.randn(4, 6, dtype=torch.float64)
    mask = runs([0, 2, 0, 5], [6, 4, 1, 6], 6)
    values[~mask] = math.nan
    whitened = whiten(values, mask, zero_mean=zero_mean)
    inside = values[mask].numpy()
    expected = (inside - np.mean(inside)) / np.std(inside, ddof=1) + (0.0 if zero_mean else np.mean(inside))
    np.testing.assert_allclose(whitened[mask].numpy(), expected, rtol=1e-8, atol=1e-12)
    assert np.mean(whitened[mask].numpy()) == pytest.approx(0.0 if zero_mean else np.mean(inside), abs=1e-12)
    assert (whitened[~mask] == 0).all()


def test_whiten_by_hand():
    # 1, 3: mean 2, unbiased variance ((-1)^2 + 1^2) / 1 = 2 (the biased one is 1), so -+1 / sqrt(2).
    whitened = whiten(f64([1.0, 3.0, 50.0]), torch.tensor([True, True, False]))
    assert whitened.tolist() == pytest.approx([-(2**-0.5), 2**-0.5, 0.0], rel=1e-6)


def test_equal_values_whiten_to_zeros():
    values = torch.full((1000,), 1e4 / 3)
    mask = torch.ones(1000, dtype=torch.bool)
    assert (whiten(values, mask) == 0).all()
    assert (whiten(values.bfloat16(), mask) == 0).all()
    torch.testing.assert_close(whiten(values, mask, zero_mean=False), values)


def test_whiten_stays_finite_and_carries_no_graph():
    values = torch.tensor([1e4, -1e4, 0.0], dtype=torch.bfloat16, requires_grad=True)
    whitened = whiten(values, torch.ones(3, dtype=torch.bool))
    assert whitened.dtype == torch.float32 and not whitened.requires_grad
    assert whitened.tolist() == pytest.approx([1.0, -1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 7.25, -1e30])
def test_one_value_has_no_deviation_and_whitens_to_its_distance_from_the_mean(value):
    """Which is 0: a policy learns nothing from one token, and the step is taken."""
    values, mask = f64([math.nan, value, math.inf]), torch.tensor([False, True, False])
    assert whiten(values, mask).tolist() == [0.0, 0.0, 0.0]
    assert whiten(values, mask, zero_mean=False).tolist() == [0.0, value, 0.0]


def test_one_value_among_several_processes_is_still_one():
    """This process has none; `across` adds the other's one value of 5."""

    def across(sums: torch.Tensor) -> torch.Tensor:
        return sums + (f64([5.0, 1.0]) if sums.shape == (2,) else f64(0.0))

    assert whiten(f64([2.0]), torch.tensor([False]), across=across).tolist() == [0.0]


def test_whiten_refuses_no_value_at_all():
    with pytest.raises(ValueError, match="whitening needs a value that counts, got none"):
        whiten(torch.ones(3), torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_values_have_no_moments(count):
    with pytest.raises(ValueError, match=rf"a variance needs at least 2 values, got {count}"):
        moments(torch.ones(count))


def test_whiten_refuses_wrong_masks():
    with pytest.raises(ValueError, match=r"mask must have the shape of values, got \[3\] against \[2, 3\]"):
        whiten(torch.ones(2, 3), torch.ones(3, dtype=torch.bool))


def test_moments_by_hand():
    # 2, 4, 9: mean 5, variance ((-3)^2 + (-1)^2 + 4^2) / 2 = 13
    mean, variance, count = moments(f64([[2.0, 4.0, 9.0]]))
    assert (mean.item(), variance.item(), count) == (5.0, 13.0, 3)


def test_moments_of_a_large_mean():
    values = 1e6 + torch.tensor([0.0, 1.0, 2.0, 3.0] * 1000)  # float32 sums of squares would have lost it all
    mean, variance, _ = moments(values)
    assert mean.item() == pytest.approx(1e6 + 1.5, rel=1e-12)
    assert variance.item() == pytest.approx(1.25 * 4000 / 3999, rel=1e-9)


@pytest.mark.parametrize("zero_mean", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_whitening_in_two_parts_is_that_of_the_whole(cut, zero_mean):
    """`across` adds the other part's sums, as an all-reduce of two processes would; one of them may have no value."""
    torch.manual_seed(0)
    values = 7 + 3 * torch.randn(9, dtype=torch.float64)
    mask = torch.ones(9, dtype=torch.bool)
    mask[[2, 6]] = False
    whole = whiten(values, mask, zero_mean=zero_mean)
    counted = values[mask]
    squares = (counted - counted.mean()).square().sum()

    def across(sums: torch.Tensor) -> torch.Tensor:
        return torch.stack([counted.sum(), f64(7.0)]) if sums.shape == (2,) else squares

    parts = [
        whiten(values[part], mask[part], zero_mean=zero_mean, across=across)
        for part in (slice(None, cut), slice(cut, None))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


def test_replies_to_one_prompt_are_compared_by_hand():
    scores = f64([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
    centered = dr_grpo_advantages(scores)
    assert centered.tolist() == [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]
    deviation = math.sqrt((4 + 1 + 9) / 2)  # the unbiased one
    expected = [value / (deviation + 1e-6) for value in (-2.0, -1.0, 3.0)]
    assert grpo_advantages(scores)[0].tolist() == pytest.approx(expected, rel=1e-12)
    assert grpo_advantages(scores)[1].tolist() == [0.0] * 3
    assert grpo_advantages(scores, eps=1.0)[0, 2].item() == pytest.approx(3.0 / (deviation + 1.0), rel=1e-12)
    # The mean of the others: 4, 3.5 and 1.5.
    assert rloo_advantages(scores).tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("advantages", [dr_grpo_advantages, grpo_advantages, rloo_advantages])
def test_groups_do_not_know_each_other_and_a_constant_changes_nothing(advantages):
    scores = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one_by_one = torch.cat([advantages(row[None]) for row in scores])
    torch.testing.assert_close(advantages(scores), one_by_one, rtol=1e-12, atol=0)
    torch.testing.assert_close(advantages(scores + 7.0), one_by_one, rtol=1e-9, atol=1e-9)
    assert advantages(scores).sum(1).abs().max() < 1e-12
    half = advantages(scores.to(torch.bfloat16).requires_grad_())
    assert half.dtype == torch.float32 and not half.requires_grad


@pytest.mark.parametrize("advantages", [dr_grpo_advantages, grpo_advantages, rloo_advantages])
@pytest.mark.parametrize(
    ("scores", "told"),
    [(torch.zeros(3, 1), r"n >= 2 .* got \[3, 1\]"), (torch.zeros(3), r"got \[3\]"), (torch.ones(2, 2).int(), "float")],
)
def test_groups_of_one_and_numbers_that_are_no_scores_are_refused(advantages, scores, told):
    with pytest.raises(ValueError, match=told):
        advantages(scores)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_returns_are_the_discounted_rewards_to_come(gamma):
    rewards, mask = f64([[1.0, 2.0, 4.0, 9.0], [9.0, 3.0, 5.0, 9.0]]), runs([0, 1], [3, 3], 4)
    found = discounted_returns(rewards, mask, gamma=gamma)
    assert found[0].tolist() == [1 + gamma * (2 + gamma * 4), 2 + gamma * 4, 4.0, 0.0]
    assert found[1].tolist() == [0.0, 3 + gamma * 5, 5.0, 0.0]

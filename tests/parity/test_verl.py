"""Advantage estimators against verl's published formulas, written out reply by reply (verl/trainer/ppo/core_algos.py).

verl reads a flat batch whose replies name their prompt: groups of several sizes, in any order, and replies of several
lengths. What a formula gives is compared where a token counts, in float64.
"""

from collections.abc import Callable
from statistics import mean, stdev

import pytest
import torch
from torch import Tensor

from alignment.config.ppo import AdvantageEstimator
from alignment.losses import (
    advantages_and_returns,
    discounted_returns,
    dr_grpo_advantages,
    grpo_advantages,
    rloo_advantages,
    whiten,
)
from alignment.rl.groups import group_advantages

SIZES = (2, 5, 3, 2)  # replies to each of four prompts
LENGTHS = (4, 1, 6, 3, 2, 5, 6, 1, 2, 3, 4, 6)
GROUPED: dict[AdvantageEstimator, tuple[Callable[[Tensor], Tensor], Callable[[float, list[float]], float]]] = {
    AdvantageEstimator.grpo: (grpo_advantages, lambda r, group: (r - mean(group)) / (stdev(group) + 1e-6)),
    AdvantageEstimator.dr_grpo: (dr_grpo_advantages, lambda r, group: r - mean(group)),
    AdvantageEstimator.rloo: (
        rloo_advantages,
        lambda r, group: len(group) / (len(group) - 1) * r - len(group) / (len(group) - 1) * mean(group),
    ),
}


def batch() -> tuple[Tensor, Tensor]:
    """Rewards of tokens, [12, 6], KL in them, and which of them count."""
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    rewards = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return rewards * mask, mask


@pytest.mark.parametrize("estimator", GROUPED)
def test_replies_are_compared_with_those_to_their_own_prompt(estimator: AdvantageEstimator) -> None:
    ours, theirs = GROUPED[estimator]
    rewards, _ = batch()
    worth = rewards.sum(1)
    index = torch.repeat_interleave(torch.arange(4), torch.tensor(SIZES))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4))
    index = index[order]  # the replies to a prompt lie anywhere in the batch
    wanted = [theirs(float(worth[i]), worth[index == index[i]].tolist()) for i in range(12)]
    found = torch.empty_like(worth)
    for prompt in range(4):
        found[index == prompt] = ours(worth[index == prompt][None])[0]
    assert found.tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("estimator", GROUPED)
def test_each_token_of_a_reply_has_its_reply_s(estimator: AdvantageEstimator) -> None:
    rewards, mask = batch()
    _, theirs = GROUPED[estimator]
    worth = rewards.sum(1).tolist()
    wanted = [[theirs(r, worth[3 * (i // 3) : 3 * (i // 3) + 3])] * LENGTHS[i] for i, r in enumerate(worth)]
    found = group_advantages(rewards, 3, estimator)
    assert found[mask].tolist() == pytest.approx([each for row in wanted for each in row], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_pp_whitens_the_rewards_to_come_of_all_tokens(gamma: float) -> None:
    rewards, mask = batch()
    returns = [
        [sum(gamma ** (s - t) * float(rewards[i, s]) for s in range(t, LENGTHS[i])) for t in range(LENGTHS[i])]
        for i in range(12)
    ]
    everything = [each for row in returns for each in row]
    scale = (stdev(everything) ** 2 + 1e-8) ** 0.5
    wanted = [(each - mean(everything)) / scale for each in everything]
    found = whiten(discounted_returns(rewards, mask, gamma=gamma), mask)
    assert found[mask].tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8)])
def test_gae_carries_value_and_advantage_from_token_to_token_of_one_reply(gamma: float, lam: float) -> None:
    rewards, mask = batch()
    values = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    wanted: list[float] = []
    for i, length in enumerate(LENGTHS):
        row, later_value, later = [], 0.0, 0.0
        for t in reversed(range(length)):
            later = float(rewards[i, t]) + gamma * later_value - float(values[i, t]) + gamma * lam * later
            later_value = float(values[i, t])
            row.append(later)
        wanted += reversed(row)
    advantages, returns = advantages_and_returns(rewards, values, mask, gamma=gamma, lam=lam)
    assert advantages[mask].tolist() == pytest.approx(wanted, rel=1e-9)
    torch.testing.assert_close(returns[mask] - values[mask], advantages[mask])
    scale = (stdev(wanted) ** 2 + 1e-8) ** 0.5
    assert whiten(advantages, mask)[mask].tolist() == pytest.approx([(a - mean(wanted)) / scale for a in wanted], 1e-9)

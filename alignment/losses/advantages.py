"""From scores to what PPO learns from: rewards per token, advantages, returns. B rows, T tokens; no gradients."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from alignment.losses.checks import at_least_float32, counted, pairwise, require_bool


@torch.no_grad()
def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_weight: float) -> Tensor:
    """R_t = -kl_weight kl_t, plus the score at the last counted token (Ouyang et al. 2203.02155, eq. 2, per token).

    scores: [B]. kl: [B, T] log pi - log pi_ref or another estimate, nats. mask: [B, T] bool. Returns [B, T], zero
    outside the mask. Raises ValueError for wrong shapes and dtypes, a negative kl_weight, a row without counted tokens.
    """
    if not 0 <= kl_weight < math.inf:
        raise ValueError(f"kl_weight must be >= 0 and finite, got {kl_weight}")
    _require_rows(mask)
    (kl,) = counted(mask, kl=kl)
    (scores,) = pairwise(scores=scores)
    if len(scores) != len(mask):
        raise ValueError(f"scores must have one entry per row of mask, got {list(scores.shape)} for {list(mask.shape)}")
    empty = ~mask.any(dim=1)
    if empty.any():
        raise ValueError(f"mask must count a token in every row to score, row {empty.nonzero()[0].item()} has none")
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = positions == (positions * mask).amax(dim=1, keepdim=True)  # [B, T], one True per row
    return torch.where(last, scores[:, None], 0.0) - kl_weight * kl


@torch.no_grad()
def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 1506.02438, eq. 16), and returns = advantages + values.

    delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lam A_{t+1}        V = A = 0 after the last token

    rewards, values: [B, T], values V_t before token t is chosen. mask: [B, T] bool, per row one run of tokens that may
    start anywhere. Returns two [B, T], zero outside the mask. Raises ValueError for wrong shapes and dtypes, for gamma
    or lam outside [0, 1] and for a mask with a hole, through which no value could be carried.
    """
    for name, constant in (("gamma", gamma), ("lam", lam)):
        if not 0 <= constant <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {constant}")
    _require_rows(mask)
    rewards, values = counted(mask, rewards=rewards, values=values)
    broken = (mask[:, 1:] & ~mask[:, :-1]).sum(dim=1) + mask[:, :1].sum(dim=1) > 1  # runs that begin in the row
    if broken.any():
        raise ValueError(f"mask must be one run of True in each row, row {broken.nonzero()[0].item()} has a hole")
    advantages = rewards + gamma * pad(values, (0, 1))[:, 1:] - values  # delta
    reach, decay = 1, gamma * lam
    while reach < mask.shape[1] and decay:  # of A_t the next `reach` terms are there; then twice as many
        advantages = advantages + decay * pad(advantages, (0, reach))[:, reach:]
        reach, decay = 2 * reach, decay * decay
    advantages = advantages.masked_fill(~mask, 0.0)
    return advantages, advantages + values


@torch.no_grad()
def grpo_advantages(scores: Tensor, *, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean r) / (std r + eps), of the n replies to one prompt (Shao et al. 2402.03300, section 4.1.2).

    scores: [G, n], of n >= 2 replies to each of G prompts. The deviation is the unbiased one (n - 1); eps is verl's,
    TRL has 1e-4. Replies that score alike get 0. Returns [G, n]. Raises ValueError for another shape or dtype, n < 2.
    """
    centered = dr_grpo_advantages(scores)
    return centered / (centered.std(1, keepdim=True) + eps)


@torch.no_grad()
def dr_grpo_advantages(scores: Tensor) -> Tensor:
    """A_i = r_i - mean r, of the n replies to one prompt (Liu et al. 2503.20783, section 3.2): hard and easy prompts
    weigh alike. scores, returns and raises as `grpo_advantages`."""
    scores = _require_groups(scores)
    return scores - scores.mean(1, keepdim=True)


@torch.no_grad()
def rloo_advantages(scores: Tensor) -> Tensor:
    """A_i = r_i - mean of the other n - 1 replies' (Ahmadian et al. 2402.14740, eq. 8). scores, returns and raises as
    `grpo_advantages`."""
    scores = _require_groups(scores)
    n = scores.shape[1]
    return scores - (scores.sum(1, keepdim=True) - scores) / (n - 1)


@torch.no_grad()
def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """G_t = r_t + gamma G_{t+1}, 0 after the last token: REINFORCE++'s advantage before it is whitened over the batch
    (Hu 2501.03262, section 3.1).

    rewards: [B, T]. mask: [B, T] bool, one run of tokens in each row. Returns [B, T], zero outside the mask. Raises
    ValueError as `advantages_and_returns`, which this is without values and with lam = 1.
    """
    return advantages_and_returns(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[0]


def _require_groups(scores: Tensor) -> Tensor:
    """Less the first of each prompt, which changes no estimate but for its rounding: what is alike is exactly 0, where
    a mean of equal numbers need not be that number. In float32 at least."""
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores must have shape [G, n], of n >= 2 replies to a prompt, got {list(scores.shape)}")
    if not scores.is_floating_point():
        raise ValueError(f"scores must be floating point, got {scores.dtype}")
    scores = at_least_float32(scores)
    return scores - scores[:, :1]


def single_process(sums: Tensor) -> Tensor:
    """The sums of a process that is alone."""
    return sums


@torch.no_grad()
def moments(values: Tensor, *, across: Callable[[Tensor], Tensor] = single_process) -> tuple[Tensor, Tensor, int]:
    """Mean, unbiased variance (n - 1) and number n of all processes' values.

    values: this process's, any shape, none too. across: adds a tensor up over the processes, such as an all-reduce; it
    is called twice, in float64, since a variance made of sums of squares would drown in a large mean. Returns two
    float64 scalars and n. Raises ValueError for fewer than 2 values, which have no variance.
    """
    mean, squares, count = _about_mean(values, across)
    if count < 2:
        raise ValueError(f"a variance needs at least 2 values, got {count}")
    return mean, squares / (count - 1), count


def _about_mean(values: Tensor, across: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, int]:
    """Mean, sum of squared distances from it, and number of all processes' values."""
    exact = values.double()
    total, count = across(torch.stack([exact.sum(), exact.new_tensor(exact.numel())]))
    mean = total / count
    return mean, across((exact - mean).square().sum()), int(count)


@torch.no_grad()
def whiten(
    values: Tensor, mask: Tensor, *, zero_mean: bool = True, across: Callable[[Tensor], Tensor] = single_process
) -> Tensor:
    """The counted values with standard deviation 1, and mean 0 or (zero_mean=False) the mean they had.

    values: any shape. mask: same shape, bool. across: see `moments`; with it, mean and deviation are those of all
    processes' counted values. Returns the shape of values, zero outside the mask. The variance is the unbiased one (as
    TRL's masked_whiten), and 1e-8 is added to it, so equal values become zeros. One value has no variance, and is equal
    to all there are: it becomes 0, or (zero_mean=False) stays as it is. Raises ValueError for wrong shapes and dtypes,
    and where no value counts.
    """
    (filled,) = counted(mask, values=values)
    inside = filled[mask].double()
    mean, squares, count = _about_mean(inside, across)
    if count == 0:
        raise ValueError("whitening needs a value that counts, got none")
    variance = squares / max(1, count - 1)
    whitened = (inside - mean) * (variance + 1e-8).rsqrt() + (0.0 if zero_mean else mean)
    return filled.masked_scatter(mask, whitened.to(filled.dtype))


def _require_rows(mask: Tensor) -> None:
    require_bool(mask)
    if mask.dim() != 2:
        raise ValueError(f"mask must have shape [B, T], got {list(mask.shape)}")

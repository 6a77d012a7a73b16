"""make_experience: from replies to what PPO learns from (Ziegler et al. 1909.08593; Huang et al. 2403.17031)."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from alignment.config.online import PPOConfig
from alignment.data.batches import Packer
from alignment.data.pack import Batch
from alignment.distributed.collectives import sum_over_ranks
from alignment.generation.samples import Samples
from alignment.losses import (
    Mean,
    advantages_and_returns,
    discounted_returns,
    kl_estimate,
    token_rewards,
    truncated_importance,
    whiten,
)
from alignment.models.readout import token_logprobs, token_values
from alignment.rl.groups import group_advantages
from alignment.rl.mismatch import drawn_logprobs, is_drawn_elsewhere, mismatch
from alignment.rl.roles import PPORoles
from alignment.training.metrics import Metrics


@dataclass(slots=True)
class Experience:
    """A micro-batch of replies and all that learning needs of them. T: their tokens, reply by reply, as in
    `batch.targets`."""

    batch: Batch
    old_logprobs: Tensor  # [T] nats, log pi_old(a_t | s_t)
    ref_logprobs: Tensor  # [T] nats, log pi_ref(a_t | s_t)
    advantages: Tensor  # [T], A_t, whitened over the whole iteration where configured
    values: Tensor | None  # [T], V_old(s_t); none without a critic
    returns: Tensor | None  # [T], A_t + V_old(s_t) before whitening; none without a critic
    counted: Tensor | None = None
    """[C] bool, the replies that are learned from; None: all. The others are there because all ranks must have equally
    many replies; no loss counts them."""
    drawn_logprobs: Tensor | None = None
    """[T] nats, of the engine that drew the replies, where it is another program than the actor's own forward."""
    num_replies: int = field(init=False)
    num_tokens: int = field(init=False)
    """Of the replies that are learned from, as `num_replies` is."""

    def __post_init__(self) -> None:
        self.num_replies, self.num_tokens = len(self.batch.lengths), self.batch.num_tokens
        if self.counted is not None:
            self.num_replies, self.num_tokens = int(self.counted.sum()), int(self.batch.lengths[self.counted].sum())

    def of_counted(self, of_tokens: Tensor) -> Tensor:
        """Of values per token, [T], those of replies that are learned from."""
        return of_tokens if self.counted is None else of_tokens[self.counted_tokens()]

    def drawn(self) -> Tensor:
        """[T] nats, where another engine drew the replies."""
        assert self.drawn_logprobs is not None
        return self.drawn_logprobs

    def counted_tokens(self) -> Tensor:
        """[T] bool, the tokens of replies that are learned from."""
        if self.counted is None:
            return torch.ones_like(self.advantages, dtype=torch.bool)
        return self.counted.repeat_interleave(self.batch.lengths)

    def to(self, device: torch.device) -> "Experience":
        values, returns = (None if part is None else part.to(device) for part in (self.values, self.returns))
        return Experience(
            self.batch.to(device),
            self.old_logprobs.to(device),
            self.ref_logprobs.to(device),
            self.advantages.to(device),
            values,
            returns,
            None if self.counted is None else self.counted.to(device),
            None if self.drawn_logprobs is None else self.drawn_logprobs.to(device),
        )


@torch.no_grad()
def make_experience(
    roles: PPORoles,
    samples: Samples,
    scores: Tensor,
    config: PPOConfig,
    *,
    kl_weight: float,
    packer: Packer,
    seed: int,
    counted: Tensor | None = None,
) -> tuple[list[list[Experience]], Metrics]:
    """`ppo.mini_batches` mini-batches, each a list of this process's micro-batches, and the iteration's metrics.

    The mini-batches are drawn from the samples of all processes, and each is then dealt out among them.

    Log-probs and values come from the packed forwards that learning will repeat on the very same batches, so the first
    inner step has ratio exactly 1. `scores` [G, n]: what each reply is worth, penalties included. `kl_weight`: beta of
    this iteration; with kl.place=loss the rewards are the scores alone. `counted` [G] bool: the prompts whose replies
    are learned from and measured; None: all.
    """
    roles.actor.model.eval()
    if roles.critic is not None:
        roles.critic.model.eval()
    in_reward, _ = config.kl.split(kl_weight)
    mini_batches = [
        [
            _experience(roles, batch, samples, scores, config, kl_weight=in_reward, counted=counted)
            for batch in packer.train_batches(samples.examples, rows)
        ]
        for rows in mini_batch_rows(len(samples.examples), counted, config.ppo.mini_batches, packer.num_ranks, seed)
    ]
    everything = [experience for mini_batch in mini_batches for experience, _ in mini_batch]
    if config.advantage.whitens:
        whiten_together(everything)
    metrics = Metrics()
    for _, more in (pair for mini_batch in mini_batches for pair in mini_batch):
        metrics = metrics + more
    if is_drawn_elsewhere(samples):
        metrics |= measure_mismatch(everything)
        if config.ppo.importance_clip is not None:
            weigh_by_importance(everything, config.ppo.importance_clip)
    return [[experience for experience, _ in mini_batch] for mini_batch in mini_batches], metrics


def mini_batch_rows(count: int, counted: Tensor | None, num: int, num_ranks: int, seed: int) -> list[np.ndarray]:
    """The rows of each mini-batch: the counted ones shuffled and cut into at most `num` parts of about equal size, in
    the same way for any number of ranks, and behind them as many uncounted ones as make it a multiple of
    `num_ranks`."""
    counts = np.ones(count, dtype=bool) if counted is None else counted.numpy()
    rows, others = np.flatnonzero(counts), np.flatnonzero(~counts)
    parts = np.array_split(rows[np.random.default_rng(seed).permutation(len(rows))], num)
    return [np.concatenate([part, others[: -len(part) % num_ranks]]) for part in parts if len(part)]


def _experience(
    roles: PPORoles,
    batch: Batch,
    samples: Samples,
    scores: Tensor,
    config: PPOConfig,
    *,
    kl_weight: float,
    counted: Tensor | None,
) -> tuple[Experience, Metrics]:
    batch = batch.to(roles.actor.device)
    temperature = config.generation.temperature
    with roles.actor.precision():
        logprobs = token_logprobs(roles.actor.model, batch, temperature=temperature)
        ref_logprobs = roles.reference.logprobs(batch, temperature)
    mask = batch.completion_mask()
    kl = kl_estimate(logprobs, ref_logprobs, config.kl.estimator)
    reply_scores = scores[batch.rows.cpu()].flatten().to(kl.device)  # [C]
    rewards = token_rewards(reply_scores, batch.by_completion(kl), mask, kl_weight=kl_weight)
    of_replies = None if counted is None else counted[batch.rows.cpu()].repeat_interleave(batch.replies).to(kl.device)
    if roles.critic is None:
        advantages, values, returns = _advantages_without_critic(rewards, mask, batch.replies, config), None, None
    else:
        with roles.critic.precision():
            values = token_values(roles.critic.model, batch)
        advantages, returns = advantages_and_returns(
            rewards, batch.by_completion(values), mask, gamma=config.advantage.gamma, lam=config.advantage.lam
        )
        returns = returns[mask]
    drawn = drawn_logprobs(samples, batch) if is_drawn_elsewhere(samples) else None
    experience = Experience(batch, logprobs, ref_logprobs, advantages[mask], values, returns, of_replies, drawn)
    measured = {
        "kl": batch.sum_by_completion(logprobs - ref_logprobs),
        "objective/entropy": batch.sum_by_completion(-logprobs),
        "objective/scores": reply_scores,
        "objective/rlhf_reward": rewards.sum(1),
        "objective/non_score_reward": -kl_weight * batch.sum_by_completion(kl),
    }
    counts = slice(None) if of_replies is None else of_replies
    return experience, Metrics({name: Mean.of(values[counts]) for name, values in measured.items()})


def _advantages_without_critic(rewards: Tensor, mask: Tensor, replies: int, config: PPOConfig) -> Tensor:
    """[C, T], from the tokens' rewards [C, T]."""
    if config.advantage.is_grouped:
        return group_advantages(rewards, replies, config.advantage.estimator)
    return discounted_returns(rewards, mask, gamma=config.advantage.gamma)


def whiten_together(everything: list[Experience]) -> None:
    """Zero mean and unit variance over all tokens that are learned from in the iteration, on all processes, not of each
    micro-batch; 0 for the others."""
    advantages = torch.cat([experience.advantages for experience in everything])
    counted = torch.cat([experience.counted_tokens() for experience in everything])
    white = whiten(advantages, counted, across=sum_over_ranks)
    for experience, part in zip(everything, white.split([len(e.advantages) for e in everything]), strict=True):
        experience.advantages = part


def measure_mismatch(everything: list[Experience]) -> Metrics:
    """Of the tokens that are learned from in the iteration, on all processes, which measure together."""
    pairs = [(each.of_counted(each.old_logprobs), each.of_counted(each.drawn())) for each in everything]
    return mismatch(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))


def weigh_by_importance(everything: list[Experience], clip: float) -> None:
    """Each token's advantage times min(pi_old / mu, clip), by which the policy's loss weighs it; returns and values,
    which the critic learns, stay as they are."""
    for each in everything:
        each.advantages = each.advantages * truncated_importance(each.old_logprobs, each.drawn(), clip)


def count_nonfinite(mini_batches: list[list[Experience]]) -> dict[str, int]:
    """How many log-probs of `actor` and `reference` and values of `critic` are not finite, on all processes together;
    a role whose numbers are all finite is left out."""
    everything = [experience for mini_batch in mini_batches for experience in mini_batch]
    given = {
        "actor": [experience.old_logprobs for experience in everything],
        "reference": [experience.ref_logprobs for experience in everything],
        "critic": [experience.values for experience in everything if experience.values is not None],
    }
    given = {role: numbers for role, numbers in given.items() if numbers}
    counts = torch.stack([(~torch.cat(numbers).isfinite()).sum() for numbers in given.values()])
    return {role: count for role, count in zip(given, sum_over_ranks(counts).tolist(), strict=True) if count}

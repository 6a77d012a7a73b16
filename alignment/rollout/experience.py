"""make_experience: from replies to what PPO learns from (Ziegler et al. 1909.08593; Huang et al. 2403.17031)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignment.config.tasks import PPOConfig
from alignment.data.batches import packed
from alignment.data.experience import Experience
from alignment.data.pack import Batch
from alignment.distributed.engine import Engine
from alignment.losses import Mean, advantages_and_returns, kl_estimate, token_rewards, whiten
from alignment.models.readout import token_logprobs, token_values
from alignment.models.roles import Reference
from alignment.rollout.samples import Samples


@dataclass(slots=True)
class Roles:
    """Who takes part: the two that learn, in their engines, and the frozen reference."""

    actor: Engine
    critic: Engine
    reference: Reference


@torch.no_grad()
def make_experience(
    roles: Roles, samples: Samples, scores: Tensor, config: PPOConfig, *, pad_id: int, seed: int
) -> tuple[list[list[Experience]], dict[str, Mean]]:
    """`ppo.mini_batches` mini-batches, each a list of micro-batches, and the iteration's metrics.

    Log-probs and values come from the packed forwards that learning will repeat on the very same batches, so the first
    inner step has ratio exactly 1. `scores` [G, n]: what each reply is worth, penalties included.
    """
    roles.actor.model.eval()
    roles.critic.model.eval()
    order = np.random.default_rng(seed).permutation(len(samples.examples))
    mini_batches = [
        [_experience(roles, batch, scores, config) for batch in packed(samples.examples, rows, config.batch, pad_id)]
        for rows in np.array_split(order, config.ppo.mini_batches)
    ]
    everything = [experience for mini_batch in mini_batches for experience, _ in mini_batch]
    if config.advantage.whiten:
        _whiten_together(everything)
    metrics: dict[str, Mean] = {}
    for _, more in (pair for mini_batch in mini_batches for pair in mini_batch):
        metrics |= {name: metrics[name] + value if name in metrics else value for name, value in more.items()}
    return [[experience for experience, _ in mini_batch] for mini_batch in mini_batches], metrics


def _experience(roles: Roles, batch: Batch, scores: Tensor, config: PPOConfig) -> tuple[Experience, dict[str, Mean]]:
    batch = batch.to(roles.actor.device)
    temperature = config.generation.temperature
    with roles.actor.precision():
        logprobs = token_logprobs(roles.actor.model, batch, temperature=temperature)
        ref_logprobs = roles.reference.logprobs(batch, temperature)
    with roles.critic.precision():
        values = token_values(roles.critic.model, batch)
    mask = batch.completion_mask()
    kl = kl_estimate(logprobs, ref_logprobs, config.kl.estimator)
    rewards = token_rewards(
        scores[batch.rows.cpu()].flatten().to(values.device), batch.by_completion(kl), mask, kl_weight=config.kl.weight
    )
    advantages, returns = advantages_and_returns(
        rewards, batch.by_completion(values), mask, gamma=config.advantage.gamma, lam=config.advantage.lam
    )
    experience = Experience(batch, logprobs, values, advantages[mask], returns[mask])
    metrics = {"kl": Mean.of(batch.sum_by_completion(logprobs - ref_logprobs)), "length": Mean.of(batch.lengths)}
    return experience, metrics


def _whiten_together(everything: list[Experience]) -> None:
    """Zero mean and unit variance over all tokens of the iteration, not of each micro-batch."""
    advantages = torch.cat([experience.advantages for experience in everything])
    white = whiten(advantages, torch.ones_like(advantages, dtype=torch.bool))
    for experience, part in zip(everything, white.split([e.num_tokens for e in everything]), strict=True):
        experience.advantages = part

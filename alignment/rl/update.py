"""Epochs over the mini-batches of experience: a training step each of the actor and, where there is one, the critic."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from alignment.config.tasks import PPOConfig
from alignment.distributed.engine import Engine
from alignment.losses import Mean, Normalization
from alignment.rl.experience import Experience
from alignment.rl.objectives import Actor, Critic
from alignment.training.metrics import Metrics
from alignment.training.nonfinite import NonFiniteStep, stop
from alignment.training.step import Term, train_step

CRITIC_NAMES = {"loss": "value/loss", "grad_norm": "value/grad_norm", "router_loss": "value/router_loss"}


def actor_objective(config: PPOConfig, kl_weight: float) -> Actor:
    """`kl_weight`: beta, which the policy's loss has in it where kl.place=loss."""
    _, in_loss = config.kl.split(kl_weight)
    loss = config.loss.policy
    if loss.normalization is Normalization.constant and loss.length is None:
        loss = replace(loss, length=config.generation.max_new_tokens)
    return Actor(loss, config.generation.temperature, in_loss, config.kl.estimator, config.kl.bias_correction)


def objectives(config: PPOConfig, kl_weight: float) -> tuple[Actor, Critic]:
    """Of the policy, see `actor_objective`, and of the critic, where there is one."""
    return actor_objective(config, kl_weight), Critic(config.loss.value)


def update_actor_and_critic(
    actor: Engine,
    critic: Engine | None,
    mini_batches: list[list[Experience]],
    config: PPOConfig,
    *,
    kl_weight: float,
    seed: int,
    actor_learns: bool = True,
    ptx: Callable[[int], Term] | None = None,
    on_nonfinite: Callable[[NonFiniteStep], None] = stop,
) -> Metrics:
    """`ppo.epochs` over the mini-batches, shuffled anew for each epoch.

    The actor stops for this iteration once its KL from the policy that made the experience passes `ppo.max_kl`; the
    critic goes on. `kl_weight`: beta of this iteration, which the policy's loss has in it where kl.place=loss. `ptx`
    gives the term beside the actor's loss, by inner step from 0. While the critic warms up `actor_learns` is False.

    Returns:
        the metrics of all inner steps; `loss` is the policy's, the critic's is `value/loss`. `policy/steps` counts the
        actor's steps. Without a critic nothing is said of one.
    """
    policy, value = objectives(config, kl_weight)
    metrics = Metrics()
    steps = 0
    for epoch in range(config.ppo.epochs):
        for index in np.random.default_rng([seed, epoch]).permutation(len(mini_batches)):
            if actor_learns:
                beside = None if ptx is None else ptx(steps)
                learned = train_step(actor, policy, mini_batches[index], on_nonfinite, beside=beside)
                metrics = metrics + learned
                actor_learns = not _is_too_far(learned, config.ppo.max_kl)
                steps += 1
            if critic is not None:
                learned = train_step(critic, value, mini_batches[index], on_nonfinite)
                metrics = metrics + {CRITIC_NAMES.get(name, name): m for name, m in learned.items()}
    return metrics | Metrics({"policy/steps": Mean(torch.tensor(float(steps)), torch.tensor(1))}).counted_by_main()


def _is_too_far(learned: Metrics, max_kl: float | None) -> bool:
    """A step that was left out for want of numbers is no reason to stop."""
    if max_kl is None or not learned:
        return False
    return Metrics(kl=learned["policy/approx_kl"]).means()["kl"] > max_kl

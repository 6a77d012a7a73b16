"""Epochs over the mini-batches of experience: a training step each of the actor and, where there is one, the critic.

What an iteration logs, beside what TRL calls the same thing (PPO: 1.12, the last with PPOTrainer; groups: GRPO's):

    here                            TRL
    kl                              objective/kl, which is of its kl_estimator; ours is k1 always
    kl/sqrt                         none: the square root of kl, where that is above 0
    kl/weight                       kl_coef of its config: TRL has no controller
    objective/entropy               objective/entropy: -log pi summed over a reply, as it was drawn
    objective/non_score_reward      objective/non_score_reward: what the KL gives a reply as reward
    objective/scores                objective/scores: after normalizing, clipping, whitening and penalties
    objective/rlhf_reward           objective/rlhf_reward: the sum of the two before
    reward, reward/NAME             none: before clipping, whitening and penalties; of each of reward.models
    gold                            none: a score that is never learned from
    length, finished, distinct_N    none; val/num_eos_tokens; none
    generation/live_fraction        none: tokens of replies over those that were computed to make them
    loss, value/loss                loss/policy_avg, loss/value_avg (with kl.place=loss, `loss` has the KL term in it)
    kl/loss                         none: the mean over tokens of what kl.place=loss adds, before its weight
    grad_norm, value/grad_norm      grad_norm: before clipping; none
    precision/..., value/...        none: of float16, its loss scale and the steps that an overflow left out
    ranges/..., value/...           none: what underflows or overflows, by layer (log.ranges_every)
    router/..., value/...           none: how evenly a mixture's routers deal out the tokens that are learned from
    policy/approx_kl                policy/approxkl_avg, which is k2; ours is k3
    policy/clip_fraction            policy/clipfrac_avg
    policy/ratio                    val/ratio
    policy/steps                    none: the actor's steps, fewer where ppo.max_kl ended them
    entropy                         policy/entropy_avg
    value/mean, value/error         none; none: the squared error of the values before clipping
    value/drift                     none: mean distance of the values from those at the rollout
    value/clip_fraction             val/clipfrac_avg
    ptx/loss                        none: of the texts of ptx.data
    generation/mismatch, _max, _kl  sampling/sampling_logp_difference/mean, /max (GRPO); none: where vLLM draws
    groups/alike                    frac_reward_zero_std: share of prompts whose replies all score alike
    groups/redrawn                  none: share of prompts that were replied to anew for it (advantage.redraws)
    lr, step, time/step_s           lr, episode / batch size, 1 / eps

TRL averages micro-batches; a mean here is over all replies or tokens, whatever the cut. `reward`, `gold`, `length` and
their like are of the replies as they were drawn first, what was drawn anew or left out of the loss changes nothing.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from alignment.config.online import PPOConfig
from alignment.distributed.engine import Engine
from alignment.losses import Mean, Normalization
from alignment.rl.experience import Experience
from alignment.rl.objectives import Actor, Critic
from alignment.training.metrics import Metrics
from alignment.training.nonfinite import NonFiniteStep, stop
from alignment.training.step import Learner, Term, train_step, train_together

OF_CRITIC = ("loss", "grad_norm", "router_loss", "precision/loss_scale", "precision/skipped")  # value/NAME


def actor_objective(config: PPOConfig, kl_weight: float) -> Actor:
    """`kl_weight`: beta, which the policy's loss has in it where kl.place=loss."""
    _, in_loss = config.kl.split(kl_weight)
    loss = config.loss.policy
    if loss.normalization is Normalization.constant and loss.length is None:
        loss = replace(loss, length=config.generation.max_new_tokens)
    return Actor(loss, config.generation.temperature, in_loss, config.kl.estimator, config.kl.bias_correction)


def objectives(config: PPOConfig, kl_weight: float) -> tuple[Actor, Critic]:
    """The actor's and the critic's; the latter goes unused without a critic."""
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
    gives the term beside the actor's loss, by inner step from 0. While the critic warms up `actor_learns` is False. In
    float16 an overflow of either leaves out the step of both.

    Returns:
        the metrics of all inner steps; `loss` is the policy's, the critic's is `value/loss`. `policy/steps` counts the
        actor's steps. Without a critic nothing is said of one.
    """
    of_actor, of_critic = objectives(config, kl_weight)
    metrics = Metrics()
    steps = 0
    for epoch in range(config.ppo.epochs):
        for index in np.random.default_rng([seed, epoch]).permutation(len(mini_batches)):
            units, valued = mini_batches[index], Metrics()
            of_both = critic if actor_learns and actor.scaling is not None else None
            if actor_learns:
                beside = None if ptx is None else ptx(steps)
                if of_both is None:
                    learned = train_step(actor, of_actor, units, on_nonfinite, beside=beside)
                else:
                    both = Learner(actor, of_actor, units, beside), Learner(of_both, of_critic, units)
                    learned, valued = train_together(*both, on_nonfinite)
                metrics = metrics + learned
                actor_learns = not _is_too_far(learned, config.ppo.max_kl)
                steps += 1
            if critic is not None:
                valued = valued if of_both is not None else train_step(critic, of_critic, units, on_nonfinite)
                metrics = metrics + {_of_critic(name): m for name, m in valued.items()}
    return metrics | Metrics({"policy/steps": Mean(torch.tensor(float(steps)), torch.tensor(1))}).counted_by_main()


def _of_critic(name: str) -> str:
    return f"value/{name}" if name in OF_CRITIC or name.startswith(("ranges/", "router/")) else name


def _is_too_far(learned: Metrics, max_kl: float | None) -> bool:
    """A step that was skipped, for a loss or a gradient that is not finite, has no KL and stops nothing."""
    if max_kl is None or "policy/approx_kl" not in learned:
        return False
    return Metrics(kl=learned["policy/approx_kl"]).means()["kl"] > max_kl

"""PPO's first iteration: what it must be while nothing is learned, and that something is."""

from dataclasses import replace
from typing import Any

from alignment.check.agreement import EVERYTHING, ONE_ROW, gradients, micro_batches
from alignment.check.learning import STEPS, at_rates, constant, repeated
from alignment.check.verdict import Verdict, graded
from alignment.config.vocabulary import Precision
from alignment.data.experience import Experience
from alignment.distributed.precision import precision_of
from alignment.rollout.experience import make_experience
from alignment.rollout.reward import shaped
from alignment.rollout.samples import Samples
from alignment.tasks.ppo import Stage
from alignment.tasks.prepare import build_engine
from alignment.training import ppo as training_ppo
from alignment.training.objectives import Actor, Critic
from alignment.training.step import to_floats, train_step

RATIO_TOLERANCE = {Precision.float32: 1e-5, Precision.bfloat16: 1e-2}
KL_TOLERANCE = {Precision.float32: 1e-3, Precision.bfloat16: 0.5}  # nats a reply
GAIN = 0.01  # of the policy's loss, whose advantages have the size of one
VALUE_FALL = 0.99  # of the value's loss is left at most: its clipping holds a step down


def first_step(stage: Stage, samples: Samples) -> Verdict:
    """That before the first inner step the policy is the one that replied (ratio 1) and the reference (KL 0).

    Proves that replies, experience and learning read the same tokens, at one temperature and with the same weights.
    """
    experience, kl = experienced(stage, samples, EVERYTHING)
    actor: Any = stage.roles.actor
    with gradients(actor.optimizer):
        measured = to_floats(train_step(actor, actor_objective(stage), experience))
    ratio, approx_kl = measured["policy/ratio"], measured["policy/approx_kl"]
    precision = precision_of(stage.config.distributed)
    figure = (
        f"ratio {ratio:.7f}, KL {approx_kl:.1e} nats a token to the policy that replied and {kl:.1e} nats a reply to "
        f"the reference, on {len(samples.examples)} drawn replies"
    )
    same = abs(ratio - 1) < RATIO_TOLERANCE[precision] and abs(kl) < KL_TOLERANCE[precision]
    return Verdict("policy == reference", graded(same), figure)


def parts_agree(stage: Stage, samples: Samples) -> Verdict:
    """That the policy's loss and gradient do not depend on how an iteration was cut."""
    whole, cut = (experienced(stage, samples, budget)[0] for budget in (EVERYTHING, ONE_ROW))
    precision = precision_of(stage.config.distributed)
    return micro_batches(stage.roles.actor, actor_objective(stage), whole, cut, precision)


def improves(stage: Stage, samples: Samples) -> Verdict:
    """That the policy, and the critic where there is one, learn from the same experience, with the run's optimizer and
    losses. Changes both."""
    experience, _ = experienced(stage, samples, EVERYTHING)
    config, players = stage.config, stage.players

    def policy_losses(rate: float) -> list[float]:
        trial = replace(config, train=constant(config.train, rate))
        engine = build_engine(players.policy, trial, num_steps=STEPS + 1)
        return repeated(engine, actor_objective(stage), experience, has_gained)

    figure, learns = at_rates(config.train.learning_rate, policy_losses, has_gained)
    figure = f"policy's loss {figure}"
    value = players.value
    if value is not None:

        def value_losses(rate: float) -> list[float]:
            trial = replace(config, train=constant(config.train, rate))
            engine = build_engine(value, trial, num_steps=STEPS + 1)
            return repeated(engine, Critic(config.loss.value), experience, has_fallen)

        of_value, value_learns = at_rates(config.critic.learning_rate, value_losses, has_fallen)
        figure, learns = f"{figure}; critic's {of_value}", learns and value_learns
    return Verdict("learns from a few replies", graded(learns), f"{figure}; on {len(samples.examples)} replies")


def has_gained(first: float, last: float) -> bool:
    return last < first - GAIN


def has_fallen(first: float, last: float) -> bool:
    return last < VALUE_FALL * first


def actor_objective(stage: Stage) -> Actor:
    return training_ppo.actor_objective(stage.config, stage.tools.controller.weight)


def experienced(stage: Stage, samples: Samples, budget: int) -> tuple[list[Experience], float]:
    """The micro-batches of at most `budget` tokens that an iteration of these replies gives, and its KL to the
    reference, nats a reply."""
    config = replace(stage.config, batch=replace(stage.config.batch, max_tokens=budget))
    scores, _ = stage.rollouts.judge(samples)
    [micro_batches], measured = make_experience(
        stage.roles,
        samples,
        shaped(scores, samples, config),
        config,
        kl_weight=stage.tools.controller.weight,
        pad_id=stage.rollouts.prompts.tokenizer.pad_token_id,
        seed=stage.rollouts.seed(1),
    )
    return micro_batches, float(measured["kl"].mean())

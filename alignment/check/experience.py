"""PPO's first iteration: what it must be while nothing is learned, and that something is."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from alignment.check.agreement import EVERYTHING, ONE_ROW, judged_by, measured_step, micro_batches
from alignment.check.learning import STEPS, at_rates, constant, repeated
from alignment.check.verdict import Grade, Verdict, graded
from alignment.config.distributed import Precision
from alignment.generation.samples import Samples
from alignment.rl.experience import Experience
from alignment.rl.objectives import Actor, Critic
from alignment.rl.rewards import shape_scores
from alignment.rl.update import objectives
from alignment.tasks.ppo import PPOTrainer
from alignment.training.setup import build_engine

RATIO_TOLERANCE = {Precision.float32: 1e-5, Precision.bfloat16: 1e-2, Precision.float16: 1e-2}
KL_TOLERANCE = {Precision.float32: 1e-3, Precision.bfloat16: 0.5, Precision.float16: 0.5}  # nats a reply
GAIN = 0.01  # of the policy's loss, whose advantages have the size of one
NOTHING = "not measured: the replies to each prompt score alike, so that they teach nothing, as those of a random model"
VALUE_FALL = 0.99  # of the value's loss is left at most: its clipping holds a step down


def first_step(trainer: PPOTrainer, samples: Samples) -> Iterator[Verdict]:
    """That before the first inner step the policy is the one that replied (ratio 1) and the reference (KL 0); and that
    its loss and gradient do not depend on how the iteration was cut.

    The first proves that replies, experience and learning read the same tokens, at one temperature and with the same
    weights.
    """
    precision = judged_by(trainer.roles.actor.model, trainer.config.distributed)
    experience, kl = experienced(trainer, samples, EVERYTHING)
    policy, _ = objectives_of(trainer)
    whole = measured_step(trainer.roles.actor, policy, experience)
    ratio, approx_kl = whole.metrics["policy/ratio"], whole.metrics["policy/approx_kl"]
    figure = (
        f"ratio {ratio:.7f}, KL {approx_kl:.1e} nats a token to the policy that replied and {kl:.1e} nats a reply to "
        f"the reference, on {len(samples.examples)} drawn replies"
    )
    same = abs(ratio - 1) < RATIO_TOLERANCE[precision] and abs(kl) < KL_TOLERANCE[precision]
    yield Verdict("policy == reference", graded(same), figure)
    if teaches_nothing(experience):
        yield Verdict("one batch == several", Grade.warn, NOTHING)
        return
    cut, _ = experienced(trainer, samples, ONE_ROW)
    yield micro_batches(whole, measured_step(trainer.roles.actor, policy, cut), len(cut), precision)


def improves(trainer: PPOTrainer, samples: Samples) -> Verdict:
    """That the policy, and the critic where there is one, learn from the same experience, with the run's optimizer and
    losses. Changes both."""
    experience, _ = experienced(trainer, samples, EVERYTHING)
    if teaches_nothing(experience):
        return Verdict("learns from a few replies", Grade.warn, NOTHING)
    config, models = trainer.config, trainer.models
    policy, critic = objectives_of(trainer)

    def policy_losses(rate: float) -> list[float]:
        trial = replace(config, train=constant(config.train, rate))
        engine = build_engine(models.policy, trial, num_steps=STEPS + 1)
        return repeated(engine, policy, experience, has_gained)

    figure, learns = at_rates(config.train.learning_rate, policy_losses, has_gained)
    figure = f"policy's loss {figure}"
    value = models.critic
    if value is not None:

        def value_losses(rate: float) -> list[float]:
            trial = replace(config, train=constant(config.train, rate))
            engine = build_engine(value, trial, num_steps=STEPS + 1)
            return repeated(engine, critic, experience, has_fallen)

        of_value, value_learns = at_rates(config.critic.learning_rate, value_losses, has_fallen)
        figure, learns = f"{figure}; critic's {of_value}", learns and value_learns
    return Verdict("learns from a few replies", graded(learns), f"{figure}; on {len(samples.examples)} replies")


def teaches_nothing(experience: Sequence[Experience]) -> bool:
    """Whether no advantage is left, as where replies are compared with each other and score alike."""
    return not any(bool(each.advantages.any()) for each in experience)


def has_gained(first: float, last: float) -> bool:
    return last < first - GAIN


def has_fallen(first: float, last: float) -> bool:
    return last < VALUE_FALL * first


def objectives_of(trainer: PPOTrainer) -> tuple[Actor, Critic]:
    """The actor's and the critic's, as the run has them."""
    return objectives(trainer.config, trainer.state.controller.weight)


def experienced(trainer: PPOTrainer, samples: Samples, budget: int) -> tuple[list[Experience], float]:
    """The micro-batches of at most `budget` tokens that an iteration of these replies gives, and its KL to the
    reference, nats a reply."""
    config = replace(trainer.config, batch=replace(trainer.config.batch, max_tokens=budget))
    scores = shape_scores(trainer.rollouts.scorer(samples)[0], samples, config)
    [micro_batches], measured = replace(trainer, config=config).experience(samples, scores, trainer.rollouts.seed(1))
    return micro_batches, float(measured["kl"].mean())

"""That the run learns at all: ten steps on a handful of rows."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from alignment.check.subject import Subject
from alignment.check.verdict import Verdict, graded
from alignment.config.train import Schedule, TrainConfig
from alignment.distributed.engine import Engine
from alignment.terminal import progress
from alignment.training.objectives import Objective
from alignment.training.step import taken_step

STEPS = 10
FALL = 0.9  # of the first loss, at most, is left after them
HasLearned = Callable[[float, float], bool]
"""Of the first loss and the last."""
RATES = (2e-5, 2e-4, 2e-3)
"""Tried one after the other, those below the run's own left out: a run's rate may show little in ten steps, for it has
many, and the smaller a model the higher is the rate at which it learns a few rows by heart."""


def overfit(subject: Subject) -> Verdict:
    """That the loss on the same rows falls, with the run's optimizer, clipping and objective, the schedule left out.

    Changes the model's weights: the last thing to be asked.
    """

    def losses(rate: float) -> list[float]:
        engine = subject.engine(constant(subject.config.train, rate))
        objective = subject.objective(engine)
        return repeated(engine, objective, subject.batches.step(0), has_fallen)

    figure, has_learned = at_rates(subject.config.train.learning_rate, losses, has_fallen)
    rows = len(subject.batches.examples)
    goal = f"enough where it falls below {100 * FALL:g}% of the first within {STEPS} steps"
    return Verdict("overfits a few rows", graded(has_learned), f"loss {figure} on {rows} rows; {goal}")


def has_fallen(first: float, last: float) -> bool:
    return last < FALL * first


def at_rates(own: float, losses: Callable[[float], list[float]], has_learned: HasLearned) -> tuple[str, bool]:
    """First and last loss at the run's own learning rate or a higher one, until something is learned; and whether it
    is. Where the loss has risen a higher rate says no more."""
    tried = []
    for rate in sorted({max(own, each) for each in RATES}):
        first, *others = losses(rate)
        last = others[-1]
        steps = f"{len(others)} step{'s' if len(others) > 1 else ''}"
        tried.append(f"{first:.4f} -> {last:.4f} in {steps} at {rate:g}")
        if has_learned(first, last) or not last <= first:
            break
    return f"{', '.join(tried)} (the run's rate is {own:g})", has_learned(first, last)


def constant(train: TrainConfig, rate: float) -> TrainConfig:
    """The run's optimizer at one rate from the first step on."""
    return replace(
        train,
        learning_rate=rate,
        schedule=Schedule.constant,
        warmup_steps=0,
        warmup_ratio=0.0,
        max_steps=STEPS + 1,
        epochs=None,
    )


def repeated(
    engine: Engine, objective: Objective, micro_batches: Sequence[Any], has_learned: HasLearned
) -> list[float]:
    """The losses of steps on the same rows, until they have learned or `STEPS` are behind the first."""
    losses = [taken_step(engine, objective, micro_batches).means()["loss"]]
    for _ in progress(range(STEPS), "steps on the same rows"):
        losses.append(taken_step(engine, objective, micro_batches).means()["loss"])
        if has_learned(losses[0], losses[-1]):
            break
    return losses

"""That the run learns at all: ten steps on a handful of rows."""

from dataclasses import replace

from alignment.check.subject import Subject
from alignment.check.verdict import Verdict, graded
from alignment.config.vocabulary import Schedule
from alignment.training.step import to_floats, train_step

STEPS = 10
FALL = 0.9  # of the first loss, at most, is left after them
RATES = (2e-5, 2e-4, 2e-3)
"""Tried one after the other, those below the run's own left out: a run's rate may show little in ten steps, for it has
many, and the smaller a model the higher is the rate at which it learns a few rows by heart."""


def overfit(subject: Subject) -> Verdict:
    """That the loss on the same rows falls, with the run's optimizer, clipping and objective, the schedule left out.

    Changes the model's weights: the last thing to be asked.
    """
    own = subject.config.train.learning_rate
    tried = []
    for rate in sorted({max(own, each) for each in RATES}):
        first, last = _losses(subject, rate)
        tried.append(f"{first:.4f} -> {last:.4f} at {rate:g}{' (its own rate)' if rate == own else ''}")
        if (
            not last >= FALL * first or last > first
        ):  # it has learned, or worse than nothing: a higher rate says no more
            break
    rows = len(subject.batches.examples)
    figure = f"loss {', '.join(tried)} in {STEPS} steps each on {rows} rows; the run's rate is {own:g}"
    return Verdict("overfits a few rows", graded(last < FALL * first), figure)


def _losses(subject: Subject, rate: float) -> tuple[float, float]:
    """Of the first step and of the one behind the last."""
    constant = replace(
        subject.config.train,
        learning_rate=rate,
        schedule=Schedule.constant,
        warmup_steps=0,
        max_steps=STEPS + 1,
        epochs=None,
    )
    engine = subject.engine(constant)
    objective = subject.objective(engine)
    losses = [to_floats(train_step(engine, objective, subject.batches.step(0)))["loss"] for _ in range(STEPS + 1)]
    return losses[0], losses[-1]

"""What must come out alike: packed and one by one, one batch and several, one process and several."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from alignment.check.plain import plain_logprobs, plain_scores
from alignment.check.subject import Subject
from alignment.check.verdict import Verdict, graded
from alignment.config.vocabulary import Precision
from alignment.data.batches import Batches
from alignment.distributed.engine import Engine
from alignment.distributed.precision import precision_of
from alignment.models.heads import LanguageModel
from alignment.models.readout import sequence_scores, token_logprobs
from alignment.training.objectives import Objective
from alignment.training.step import to_floats, train_step

TOLERANCE = {Precision.float32: 2e-3, Precision.bfloat16: 0.1}
"""Mean difference of log-probs (nats) or scores that is rounding: a wrong mask, end or type of weights makes more."""
GRADIENT_TOLERANCE = {Precision.float32: 1e-3, Precision.bfloat16: 0.1}
"""Difference of two gradients over the size of one."""
SEEN = 4096  # about as many elements of each weight's gradient are compared
EVERYTHING, ONE_ROW = 10**9, 1  # batch.max_tokens: all rows at once, each row by itself


def packed(subject: Subject, engine: Engine, plain: PreTrainedModel) -> Verdict:
    """That log-probs (or scores) of the packed layout are those of each text alone, read by transformers itself.

    Proves the attention's mask, the positions, the read-outs, and that the weights are what the folder holds.
    """
    batches = of_tokens(subject.batches, EVERYTHING)
    [batch] = batches.once()
    rows = [batches.examples[row] for row in batch.rows.tolist()]
    engine.model.eval()
    with torch.no_grad(), engine.precision():
        if isinstance(subject.model, LanguageModel):
            ours = token_logprobs(engine.model, batch.to(engine.device)).double().cpu()
            theirs = torch.cat([plain_logprobs(plain, e.prompt_ids, ids) for e in rows for ids in e.completion_ids])
        else:
            ours = sequence_scores(engine.model, batch.to(engine.device)).double().cpu()
            theirs = plain_scores(plain, rows).double().flatten()
    unit = "nats a token" if isinstance(subject.model, LanguageModel) else "of a score"
    difference = (ours - theirs).abs()
    tolerance = TOLERANCE[precision_of(subject.config.distributed)]
    figure = (
        f"{len(rows)} rows in the {batches.config.layout.value} layout, each against transformers alone in float32: "
        f"mean difference {difference.mean():.1e}, largest {difference.max():.1e} {unit} (at most {tolerance:g})"
    )
    return Verdict("packed == one by one", graded(bool(difference.mean() < tolerance)), figure)


def micro_batches(subject: Subject, engine: Any, objective: Objective) -> Verdict:
    """That a step's loss and gradient do not depend on how its rows were cut."""
    whole, cut = (of_tokens(subject.batches, budget).step(0) for budget in (EVERYTHING, ONE_ROW))
    (loss, gradient), (cut_loss, cut_gradient) = (measured_step(engine, objective, each) for each in (whole, cut))
    difference = sum((gradient[name] - cut_gradient[name]).square().sum() for name in gradient)
    size = sum(each.square().sum() for each in gradient.values())
    relative = float(torch.as_tensor(difference / size).sqrt())
    tolerance = GRADIENT_TOLERANCE[precision_of(subject.config.distributed)]
    figure = (
        f"{len(subject.batches.examples)} rows in {len(whole)} and in {len(cut)}: loss {loss:.6g} and {cut_loss:.6g}, "
        f"gradients differ by {relative:.1e} of their size (at most {tolerance:g})"
    )
    same = abs(loss - cut_loss) <= tolerance * max(1.0, abs(loss)) and relative < tolerance
    return Verdict("one batch == several", graded(same), figure)


def of_tokens(batches: Batches, budget: int) -> Batches:
    return replace(batches, config=replace(batches.config, max_tokens=budget))


def measured_step(engine: Any, objective: Objective, batches: list[Any]) -> tuple[float, dict[int, Tensor]]:
    """The loss of a training step, and some of each weight's gradient; the weights stay as they are."""
    with gradients(engine.optimizer) as found:
        loss = to_floats(train_step(engine, objective, batches))["loss"]
    return loss, found


@contextmanager
def gradients(optimizer: Optimizer) -> Iterator[dict[int, Tensor]]:
    """Inside, a step of the optimizer changes nothing and leaves about `SEEN` elements of each gradient here."""
    found: dict[int, Tensor] = {}

    def take(optimizer: Optimizer, *_: Any) -> None:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        for number, p in enumerate(weights):
            if p.grad is not None:
                found[number] = p.grad.detach().flatten()[:: max(1, p.numel() // SEEN)].double().cpu()
                p.grad = None  # the optimizer passes over a weight without one

    hook = optimizer.register_step_pre_hook(take)
    try:
        yield found
    finally:
        hook.remove()

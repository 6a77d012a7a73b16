"""KTO's objective: each reply against its reference and against what the step's mismatched replies have (the KL)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignment.config.errors import UserError
from alignment.data.batches import Batches, EvenBatches
from alignment.data.numbers import numbers
from alignment.data.pack import Batch
from alignment.data.tokenize import Example
from alignment.distributed.collectives import sum_over_ranks
from alignment.distributed.engine import Engine
from alignment.losses import KTOLoss, LossOutput
from alignment.models.forwards import forwards
from alignment.models.readout import completion_logprobs


@dataclass(slots=True)
class KTO:
    """`mismatched` are the same prompts with replies to other ones. Both tables are [examples, 1], nats, of the
    reference: of the own replies, and of those."""

    loss: KTOLoss
    reference: Tensor
    mismatched: Batches
    mismatched_reference: Tensor
    baseline: Tensor = field(default_factory=lambda: torch.zeros(()))

    def prepare(self, engine: Engine, batches: EvenBatches[Batch]) -> None:
        """The mean over the whole step, on all processes, of log pi - log pi_ref of the mismatched replies, each of its
        row's weight: so that it depends neither on the cut nor on how many processes there are."""
        if not self.loss.has_baseline:
            return
        was_training = engine.model.training
        engine.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
        others = ((self.mismatched.of(batch.rows.tolist()), counts) for batch, counts in batches)
        read = partial(completion_logprobs, engine.model)
        for other, logprobs, counts in forwards(others, read, device=engine.device, precision=engine.precision):
            if counts:
                log_ratio = logprobs.double() - self.mismatched_reference[other.rows, 0].double()
                weights = other.weights.to(log_ratio)  # of the rows whose prompts these are
                sums += torch.stack([(weights * log_ratio).sum(), weights.sum()])
        total, count = sum_over_ranks(sums)
        self.baseline = (total / count).float()
        engine.model.train(was_training)

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        logprobs = completion_logprobs(model, batch)
        assert batch.labels is not None
        reference, baseline = self.reference[batch.rows, 0], self.baseline.to(logprobs.device)
        return self.loss(logprobs, reference, batch.labels, baseline, weight=batch.weights)

    def count(self, batch: Batch) -> float:
        return batch.total_weight


def num_prompts(examples: Sequence[Example]) -> int:
    return len(np.unique(numbers(examples, "prompt_ids_hash")))


def with_replies_to_others(examples: Sequence[Example], max_length: int) -> "Mismatched":
    """Each prompt with a reply of the nearest example before it, or from the end, that has another prompt: where all
    prompts differ, as TRL and the authors' code have it. Where one has several in a row, as both replies of a pair, the
    k-th of it takes the k-th of the other: the nearest alone would all be rejected ones. What is too long loses its
    end.

    Raises:
        UserError: all prompts are the same.
    """
    prompts = numbers(examples, "prompt_ids_hash")
    begins = np.flatnonzero(np.r_[True, prompts[1:] != prompts[:-1]])  # of the rows of one prompt behind one another
    if len(begins) < 2:
        rule = "KTO's KL is of replies to other prompts, so that its data must have two prompts or more"
        raise UserError(f"{rule}, got one in {len(examples)} rows, first {examples[0].source}")
    sizes = np.diff(np.r_[begins, len(prompts)])
    before = np.arange(len(begins)) - 1  # neighbours differ, but for the last and the first
    before[0] = np.flatnonzero(prompts[begins] != prompts[0])[-1]
    group = np.repeat(np.arange(len(begins)), sizes)
    place = np.arange(len(prompts)) - begins[group]
    other = before[group]
    return Mismatched(examples, begins[other] + place % sizes[other], max_length)


@dataclass(frozen=True, slots=True)
class Mismatched(Sequence[Example]):
    """Each example's prompt with the reply of another, made as it is asked for."""

    examples: Sequence[Example]
    others: np.ndarray  # [examples] int64
    max_length: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        return _with_reply(self.examples[index], self.examples[int(self.others[index])], self.max_length)


def _with_reply(example: Example, other: Example, max_length: int) -> Example:
    room = max_length - len(example.prompt_ids)
    learned = None if other.learned is None else (other.learned[0][:room],)
    if learned is not None and not learned[0].any():
        learned = None  # what carries loss was cut away, and something must be read
    return replace(example, completion_ids=(other.completion_ids[0][:room],), learned=learned)

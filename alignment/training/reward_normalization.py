"""The mean and standard deviation of a trained reward model's scores."""

from functools import partial

import torch

from alignment.data.batches import Batches, EvenBatches
from alignment.data.pack import Batch
from alignment.distributed.collectives import sum_over_ranks
from alignment.distributed.engine import Engine
from alignment.losses import moments
from alignment.models.forwards import forwards
from alignment.models.readout import sequence_scores
from alignment.models.reward_normalization import RewardStatistics

ENOUGH_PAIRS = 1024
"""Of training data, where a pass over all would take a third of an epoch's time."""


def reward_statistics(engine: Engine, train: Batches, held_out: Batches | None) -> RewardStatistics:
    """Of the scores that the engine's model gives both replies of each held-out pair.

    Where there are no held-out pairs, of those that the first steps trained on: it knows them, so their deviation is
    somewhat larger than that of new ones.
    """
    batches = _first(train) if held_out is None else held_out.once()
    engine.model.eval()
    scores = [torch.zeros(0, device=engine.device)]
    read = partial(sequence_scores, engine.model)
    for _, of_batch, counts in forwards(batches, read, device=engine.device, precision=engine.precision):
        if counts:
            scores.append(of_batch)
    mean, variance, count = moments(torch.cat(scores), across=sum_over_ranks)
    return RewardStatistics(mean.item(), variance.sqrt().item(), count, "train" if held_out is None else "eval")


def _first(train: Batches) -> EvenBatches[Batch]:
    """About `ENOUGH_PAIRS`, none of them twice unless a step itself holds one twice."""
    steps = max(1, min(ENOUGH_PAIRS, len(train.examples)) // train.packer.config.size)
    batches = [batch for index in range(steps) for batch in train.step(index)]
    return EvenBatches(batches) if train.packer.counts else EvenBatches((), batches)

"""The log-probs of a frozen reference, computed once before the first step: no second model stays in memory."""

from collections.abc import Iterable

import torch
from torch import Tensor

from alignment.data.batches import Batches, packed
from alignment.distributed.engine import Engine
from alignment.models.readout import token_logprobs
from alignment.terminal import progress


@torch.no_grad()
def reference_logprobs(engine: Engine, batches: Batches, rows: Iterable[int]) -> Tensor:
    """[examples, 2] float32: summed log-probs (nats) of chosen and rejected under the engine's model as it is now.

    Examples outside `rows` are NaN, so that a use of one cannot pass unseen.
    """
    table = torch.full((len(batches.examples), 2), torch.nan)
    engine.model.eval()
    pieces = packed(batches.examples, rows, batches.config, batches.pad_id)
    for batch in progress(pieces, "reference"):
        with engine.precision():
            logprobs = token_logprobs(engine.model, batch.to(engine.device))
        sums = batch.to(engine.device).sum_by_completion(logprobs)
        table[batch.rows] = sums.view(-1, 2).cpu()
    return table.to(engine.device)

"""How far the engine that drew the replies is from the model that learns from them.

Both have the same weights, and yet an engine of its own computes in other kernels, another precision and other batches.
What it drew is then off the policy by a little, at every token, and by a lot where weights or a template went wrong.
"""

import torch
from torch import Tensor

from alignment.data.pack import Batch
from alignment.distributed.collectives import gathered
from alignment.generation.samples import Samples
from alignment.losses import KLEstimator, Mean, kl_estimate
from alignment.training.metrics import Metrics


def is_drawn_elsewhere(samples: Samples) -> bool:
    """Whether another engine than the model itself drew them, and says with which log-probs."""
    return bool(samples.replies) and samples.replies[0][0].drawn_logprobs is not None


def drawn_logprobs(samples: Samples, batch: Batch) -> Tensor:
    """[T] nats, in the order of `batch.targets` and where the batch is."""
    replies = [reply for row in batch.rows.tolist() for reply in samples.replies[row]]
    known = [torch.from_numpy(reply.drawn_logprobs) for reply in replies if reply.drawn_logprobs is not None]
    assert len(known) == len(replies)
    return torch.cat(known).to(batch.rows.device)


def mismatch(old_logprobs: Tensor, drawn: Tensor) -> Metrics:
    """Of the tokens that this process has of an iteration, [T] each, nats; all processes ask together.

    generation/mismatch      mean of |log pi - log mu|
    generation/mismatch_max  its largest, of all processes
    generation/mismatch_kl   KL(mu || pi) by k3, of tokens drawn from mu
    """
    off = (old_logprobs - drawn).abs()
    largest = max(gathered(off.max().item() if len(off) else 0.0))
    highest = Metrics({"generation/mismatch_max": Mean(torch.tensor(largest), torch.tensor(1))}).counted_by_main()
    kl = kl_estimate(drawn, old_logprobs, KLEstimator.k3)
    return highest | Metrics({"generation/mismatch": Mean.of(off), "generation/mismatch_kl": Mean.of(kl)})

"""How far the engine that drew the replies is from the model that learns from them.

Both have the same weights, and yet an engine of its own computes in other kernels, another precision and other batches.
What it drew is then off the policy by a little, at every token, and by a lot where weights or a template went wrong.
"""

import torch
from torch import Tensor

from alignment.data.batches import Packer
from alignment.data.pack import Batch
from alignment.distributed.collectives import gathered
from alignment.distributed.engine import Engine
from alignment.generation.samples import Samples
from alignment.losses import KLEstimator, Mean, kl_estimate
from alignment.models.readout import token_logprobs
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


@torch.no_grad()
def measured_mismatch(engine: Engine, samples: Samples, packer: Packer, *, temperature: float) -> Metrics:
    """`mismatch` of all replies of an iteration, by a forward of its own: of a method that does not read them so while
    it learns. Nothing where the model itself drew them. All processes call it together, each with all replies."""
    if not is_drawn_elsewhere(samples):
        return Metrics()
    engine.model.eval()
    old, drawn = [], []
    for batch in (batch.to(engine.device) for batch in packer.train_batches(samples.examples)):
        with engine.precision():
            old.append(token_logprobs(engine.model, batch, temperature=temperature))
        drawn.append(drawn_logprobs(samples, batch))
    return mismatch(torch.cat(old), torch.cat(drawn))


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

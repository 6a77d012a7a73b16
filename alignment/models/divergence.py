"""How far the next-token distributions of two models of one vocabulary are apart."""

import torch
from torch import Tensor

from alignment.data.pack import Batch
from alignment.models.heads import LanguageModel
from alignment.models.logprobs import ROWS


@torch.no_grad()
def next_token_divergence(model: LanguageModel, other: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Where each completion token is chosen: KL(model || other) = sum over tokens v of p(v) (log p(v) - log q(v)), in
    nats, and whether both have the same likeliest token, 1 or 0; [T] float64 each. Both models are whole."""
    hidden, others = model.hidden(batch, batch.positions), other.hidden(batch, batch.positions)
    found = [torch.zeros(2, 0, dtype=torch.float64, device=hidden.device)]
    for start in range(0, len(hidden), ROWS):
        rows = slice(start, start + ROWS)
        ours, theirs = model.logits(hidden[rows]).double(), other.logits(others[rows]).double()
        p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)
        found.append(torch.stack([kl, (ours.max(-1).indices == theirs.max(-1).indices).double()]))
    kl, same = torch.cat(found, dim=1)
    return kl, same

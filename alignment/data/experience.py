"""What PPO learns from: replies, what was thought of them when they were made, and what they were worth."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.data.pack import Batch


@dataclass(slots=True)
class Experience:
    """A micro-batch of replies, complete when born. T reply tokens, reply by reply, as in `batch.targets`."""

    batch: Batch
    old_logprobs: Tensor  # [T] nats, log pi_old(a_t | s_t)
    ref_logprobs: Tensor  # [T] nats, log pi_ref(a_t | s_t)
    advantages: Tensor  # [T], A_t, whitened over the whole iteration where configured
    values: Tensor | None  # [T], V_old(s_t); none without a critic
    returns: Tensor | None  # [T], A_t + V_old(s_t) before whitening; none without a critic

    @property
    def num_tokens(self) -> int:
        return self.batch.num_tokens

    def to(self, device: torch.device) -> "Experience":
        values, returns = (None if part is None else part.to(device) for part in (self.values, self.returns))
        return Experience(
            self.batch.to(device),
            self.old_logprobs.to(device),
            self.ref_logprobs.to(device),
            self.advantages.to(device),
            values,
            returns,
        )

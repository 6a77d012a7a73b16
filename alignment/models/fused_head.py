"""Log-probs and entropies of a plain head without its logits: trl's kernels, on a GPU.

A tile of the logits, of 4,096 tokens and a part of the vocabulary, is made by one product and folded in one pass into
each token's running maximum, sum and entropy in float32; the backward pass makes the tile anew, turns it into its
gradient in place, and adds up both products in float32. logprobs.py takes some ten passes over logits for as much, and
makes them for a few hundred tokens at a time, for which a GPU reads the whole head each time.

They take the head's weight itself. So they serve no head that is more than a weight and a bias (an adapter on it,
weights that are packed), and none that is in parts: under ZeRO 3 they would gather it in their backward pass, and let
go of it, inside the run in which DeepSpeed holds it (one_run.py). Nor float64, which they would round. Those read by
logprobs.py. Without Triton trl folds tiles by torch's operations, to the same numbers; a CPU has no use for that.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

DEVICES = ("cuda",)


@dataclass(frozen=True, slots=True)
class LogitScale:
    """What some families do to their logits: z = factor * logit / divisor, and cap * tanh(z / cap) of it."""

    divisor: float | None  # Granite's
    factor: float | None  # Cohere's
    cap: float | None  # Gemma 2's

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "LogitScale":
        settings = config.get_text_config().to_dict()
        return cls(*(settings.get(name) for name in ("logits_scaling", "logit_scale", "final_logit_softcapping")))

    @property
    def whole(self) -> float:
        """The factor without a cap."""
        return (1.0 if self.factor is None else self.factor) / (1.0 if self.divisor is None else self.divisor)

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits if self.divisor is None else logits / self.divisor
        logits = logits if self.factor is None else logits * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def reads(head: nn.Module, hidden: Tensor) -> bool:
    """Whether the kernels serve a head and its inputs."""
    is_plain = type(head) is nn.Linear and "ds_id" not in vars(head.weight)  # of ZeRO 3
    return is_plain and hidden.device.type in DEVICES and hidden.dtype != torch.float64


def read(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    scale: LogitScale,
    *,
    temperature: float,
    entropy: bool,
    greedy: bool,
    most: int,
) -> tuple[Tensor, ...]:
    """As LanguageModel.forward, of hidden [T, H]; `most`: logits that exist at the same time."""
    from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE, ChunkedLogProbFunction  # not above: trl takes its time

    asked = (*(("entropy",) if entropy else ()), *(("is_top1",) if greedy else ()))
    width = max(1, most // TOKEN_CHUNK_SIZE)
    logprobs, entropies, _, _, hits = ChunkedLogProbFunction.apply(
        hidden, head.weight, head.bias, targets, temperature, width, scale.cap, scale.whole, asked
    )
    beside = [entropies.detach()] if entropy else []
    return (logprobs, *beside, *([hits.to(logprobs.dtype)] if greedy else []))

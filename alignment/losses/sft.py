"""Supervised fine-tuning."""

from dataclasses import dataclass

from torch import Tensor

from alignment.losses.checks import counted
from alignment.losses.types import LossOutput, Mean


@dataclass(slots=True)
class CrossEntropyLoss:
    """Negative log-likelihood of the demonstrations,  L = -log pi(y_t | x, y_<t)  (Ouyang et al. 2203.02155, sec. 3.5).

    Reduction: mean over counted tokens.
    """

    def __call__(self, logprobs: Tensor, mask: Tensor) -> LossOutput:
        """logprobs: [..., T] of each token, nats. mask: [..., T] bool, True = counts.

        Metric: `logps/token`, mean log-prob of a counted token. Raises ValueError for wrong shapes and dtypes.
        """
        (logprobs,) = counted(mask, logprobs=logprobs)
        return LossOutput(Mean.of(-logprobs, mask), {"logps/token": Mean.of(logprobs, mask)})

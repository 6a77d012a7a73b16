"""Supervised fine-tuning."""

from dataclasses import dataclass

from torch import Tensor

from alignment.losses.checks import counted
from alignment.losses.types import LossOutput, Mean


@dataclass(slots=True)
class CrossEntropyLoss:
    """Negative log-likelihood of the demonstrations,  L = -log pi(y_t | x, y_<t)  (Ouyang et al. 2203.02155, sec. 3.5).

    Reduction: mean over counted tokens, weighted where their rows carry weights.
    """

    def __call__(self, logprobs: Tensor, mask: Tensor, weight: Tensor | None = None) -> LossOutput:
        """logprobs: [..., T] of each token, nats. mask: [..., T] bool, True = counts. weight: [..., T], > 0, what each
        token counts in the mean; None: 1.

        Metric: `logps/token`, mean log-prob of a counted token. Raises ValueError for wrong shapes and dtypes.
        """
        (logprobs,) = counted(mask, logprobs=logprobs)
        metrics = {"logps/token": Mean.of(logprobs, mask)}
        if weight is None:
            return LossOutput(Mean.of(-logprobs, mask), metrics)
        logprobs, weight = counted(mask, logprobs=logprobs, weight=weight)
        return LossOutput(Mean((weight * -logprobs).sum(), weight.sum()), metrics)

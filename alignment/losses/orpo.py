"""Odds ratio preference optimisation: fine-tuning and preference in one loss, without a reference."""

import math
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment.losses.checks import member, pairwise
from alignment.losses.preference import mean_over_pairs, preference_metrics
from alignment.losses.types import LossOutput, Mean


class ORPONll(str, Enum):
    """Which tokens of the chosen sequence the likelihood term counts."""

    completion = "completion"
    """The chosen completion's (the paper)."""
    sequence = "sequence"
    """The prompt's too (TRL)."""


@dataclass(slots=True)
class ORPOLoss:
    """L = nll(y_c) - weight log sigmoid(log odds(y_c) - log odds(y_r)),  odds(y) = p / (1 - p),  p = exp(mean log-prob)

    Hong, Lee, Thorne 2403.07691, eqs. 4, 6 and 7; `weight` is the paper's lambda. Reduction: mean over pairs,
    weighted where they carry weights.
    """

    weight: float = 0.1
    """Weight of the odds-ratio term beside the likelihood, the paper's lambda (TRL calls it beta)."""
    nll: ORPONll = ORPONll.completion
    """Which tokens the likelihood counts."""

    def __post_init__(self) -> None:
        self.nll = member(ORPONll, "loss.nll", self.nll)
        if not 0 < self.weight < math.inf:
            raise ValueError(f"loss.weight must be > 0 and finite, got {self.weight}")

    def __call__(
        self,
        chosen_logprobs: Tensor,
        rejected_logprobs: Tensor,
        chosen_nll: Tensor | None = None,
        *,
        weight: Tensor | None = None,
    ) -> LossOutput:
        """All [B]. *_logprobs: MEAN log-prob per completion token, nats. chosen_nll: mean negative log-prob per token
        of prompt and completion, nats; nll=sequence requires it, nll=completion takes -chosen_logprobs and no other.
        weight: > 0, what each pair counts in the mean; None: 1.

        Metrics, over pairs alike: `rewards/*` of loss.weight * log-prob, `logps/chosen`, `logps/rejected`, `nll`,
        `log_odds` (their difference), `odds_ratio_loss` (before loss.weight). Raises ValueError for wrong shapes,
        dtypes and chosen_nll.
        """
        chosen, rejected = pairwise(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs)
        nll = self._nll(chosen, chosen_nll)
        log_odds = (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))
        odds_ratio_losses = -F.logsigmoid(log_odds)
        metrics = preference_metrics(self.weight * chosen, self.weight * rejected) | {
            "logps/chosen": Mean.of(chosen),
            "logps/rejected": Mean.of(rejected),
            "nll": Mean.of(nll),
            "log_odds": Mean.of(log_odds),
            "odds_ratio_loss": Mean.of(odds_ratio_losses),
        }
        return LossOutput(mean_over_pairs(nll + self.weight * odds_ratio_losses, weight), metrics)

    def _nll(self, chosen_logprobs: Tensor, chosen_nll: Tensor | None) -> Tensor:
        if self.nll is ORPONll.completion:
            if chosen_nll is not None:
                raise ValueError("chosen_nll must be None for loss.nll=completion, where it is -chosen_logprobs")
            return -chosen_logprobs
        if chosen_nll is None:
            raise ValueError("chosen_nll must be given for loss.nll=sequence, got None")
        return pairwise(chosen_logprobs=chosen_logprobs, chosen_nll=chosen_nll)[1]


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, any shape (Maechler 2012, "Accurately computing log(1 - exp(-|a|))", eq. 7).

    Probabilities nearer to 1 than the dtype's epsilon count as 1 - eps: at x = 0 value and slope would be infinite.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))

"""Contrastive preference optimisation: DPO with a reference that finds all replies alike, and fine-tuning beside it."""

import math
from dataclasses import dataclass
from enum import Enum

import torch.nn.functional as F
from torch import Tensor

from alignment.losses.checks import member, pairwise
from alignment.losses.preference import mean_over_pairs, preference_metrics
from alignment.losses.types import LossOutput, Mean


class CPOVariant(str, Enum):
    """The function of h (see CPOLoss) that is minimised."""

    sigmoid = "sigmoid"
    """-(1 - e) log s(beta h) - e log s(-beta h) (Xu et al. 2401.08417, CPO, eq. 3, where e = 0)."""
    hinge = "hinge"
    """max(0, 1 - beta h) (Zhao et al. 2305.10425, SLiC-HF, times beta: 1 / beta is its margin delta, cpo_alpha / beta
    its lambda)."""


@dataclass(slots=True)
class CPOLoss:
    """L = f(h) + cpo_alpha nll(y_c),  h = log pi(y_c) - log pi(y_r),  e = label_smoothing,  s the logistic sigmoid

    f is under its name in CPOVariant; in Xu et al. 2401.08417, eq. 3 and the likelihood beside it, cpo_alpha = 1. nll
    is the mean over the chosen completion's tokens, as in the paper's code and in TRL, the log-probs are sums.
    Reduction: mean over pairs, weighted where they carry weights.
    """

    beta: float = 0.1
    """Factor on the difference of the summed log-probs."""
    cpo_alpha: float = 1.0
    """Weight of the chosen reply's negative log-likelihood."""
    label_smoothing: float = 0.0
    """Share of the pairs whose preference is taken to be the wrong way round."""
    variant: CPOVariant = CPOVariant.sigmoid
    """The function of that difference, h = log pi(y_c) - log pi(y_r), that is minimised; e = loss.label_smoothing, s
    the logistic sigmoid."""

    def __post_init__(self) -> None:
        self.variant = member(CPOVariant, "loss.variant", self.variant)
        if not 0 < self.beta < math.inf:
            raise ValueError(f"loss.beta must be > 0 and finite, got {self.beta}")
        if not 0 <= self.cpo_alpha < math.inf:
            raise ValueError(f"loss.cpo_alpha must be >= 0 and finite, got {self.cpo_alpha}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"loss.label_smoothing must be in [0, 0.5), got {self.label_smoothing}")
        if self.variant is CPOVariant.hinge and self.label_smoothing != 0:
            rule = "loss.label_smoothing must be 0 for loss.variant=hinge, which has no such term"
            raise ValueError(f"{rule}, got {self.label_smoothing}")

    def __call__(
        self,
        chosen_logprobs: Tensor,
        rejected_logprobs: Tensor,
        chosen_nll: Tensor,
        *,
        weight: Tensor | None = None,
    ) -> LossOutput:
        """All [B]. *_logprobs: of each completion, SUMMED over its tokens, nats. chosen_nll: MEAN negative log-prob per
        token of the chosen completion, nats. weight: > 0, what each pair counts in the mean; None: 1.

        Metrics, over pairs alike: `rewards/*` of beta * log-prob, `logps/chosen`, `logps/rejected`, `nll`.
        Raises ValueError for wrong shapes and dtypes.
        """
        chosen, rejected, nll = pairwise(
            chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs, chosen_nll=chosen_nll
        )
        losses = self._losses(self.beta * (chosen - rejected)) + self.cpo_alpha * nll
        metrics = preference_metrics(self.beta * chosen, self.beta * rejected) | {
            "logps/chosen": Mean.of(chosen),
            "logps/rejected": Mean.of(rejected),
            "nll": Mean.of(nll),
        }
        return LossOutput(mean_over_pairs(losses, weight), metrics)

    def _losses(self, z: Tensor) -> Tensor:
        e = self.label_smoothing
        match self.variant:
            case CPOVariant.sigmoid:
                return (1 - e) * -F.logsigmoid(z) + e * -F.logsigmoid(-z)
            case CPOVariant.hinge:
                return F.relu(1 - z)

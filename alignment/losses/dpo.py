"""Direct preference optimisation and its nearest relatives."""

import math
from dataclasses import dataclass
from enum import Enum

import torch.nn.functional as F
from torch import Tensor

from alignment.losses.checks import member, pairwise
from alignment.losses.preference import preference_metrics
from alignment.losses.types import LossOutput, Mean


class DPOVariant(str, Enum):
    """The function of h (see DPOLoss) that is minimised."""

    sigmoid = "sigmoid"
    ipo = "ipo"
    hinge = "hinge"
    robust = "robust"


@dataclass(slots=True)
class DPOLoss:
    """h = (log pi(y_c) - log pi_ref(y_c)) - (log pi(y_r) - log pi_ref(y_r)),  e = label_smoothing

    sigmoid  -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)
             Rafailov et al. 2305.18290, eq. 7; with e > 0 Mitchell 2023 (cDPO, ericmitchell.ai/cdpo.pdf), eq. 3
    robust   (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2e)
             Chowdhury, Kini, Natarajan 2403.00409 (rDPO): unbiased if a share e of the pairs is flipped
    ipo      (h - 1 / (2 beta))^2
             Azar et al. 2310.12036, eq. 17, where beta is called tau
    hinge    max(0, 1 - beta h)
             Liu et al. 2309.06657 (RSO), where beta is called gamma

    Reduction: mean over pairs.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    variant: DPOVariant = DPOVariant.sigmoid

    def __post_init__(self) -> None:
        self.variant = member(DPOVariant, "loss.variant", self.variant)
        if not 0 < self.beta < math.inf:
            raise ValueError(f"loss.beta must be > 0 and finite, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"loss.label_smoothing must be in [0, 0.5), got {self.label_smoothing}")
        if self.variant in (DPOVariant.ipo, DPOVariant.hinge) and self.label_smoothing != 0:
            rule = f"loss.label_smoothing must be 0 for loss.variant={self.variant.value}"
            raise ValueError(f"{rule}, which has no such term, got {self.label_smoothing}")
        if self.variant is DPOVariant.robust and self.label_smoothing == 0:
            raise ValueError("loss.label_smoothing must be > 0 for loss.variant=robust (at 0 it is sigmoid), got 0")

    def __call__(
        self,
        chosen_logprobs: Tensor,
        rejected_logprobs: Tensor,
        ref_chosen_logprobs: Tensor,
        ref_rejected_logprobs: Tensor,
    ) -> LossOutput:
        """All [B]: log-probs of each completion, SUMMED over its tokens, nats, of the policy and of the reference.

        TRL's ipo divides each log-ratio by its completion's length: pass mean log-probs to do the same.
        Metrics: `rewards/*` of the implicit reward beta (log pi - log pi_ref), `logps/chosen`, `logps/rejected`.
        Raises ValueError for wrong shapes and dtypes.
        """
        chosen, rejected, ref_chosen, ref_rejected = pairwise(
            chosen_logprobs=chosen_logprobs,
            rejected_logprobs=rejected_logprobs,
            ref_chosen_logprobs=ref_chosen_logprobs,
            ref_rejected_logprobs=ref_rejected_logprobs,
        )
        chosen_ratio, rejected_ratio = chosen - ref_chosen, rejected - ref_rejected
        metrics = preference_metrics(self.beta * chosen_ratio, self.beta * rejected_ratio)
        metrics |= {"logps/chosen": Mean.of(chosen), "logps/rejected": Mean.of(rejected)}
        return LossOutput(Mean.of(self._losses(chosen_ratio - rejected_ratio)), metrics)

    def _losses(self, h: Tensor) -> Tensor:
        e = self.label_smoothing
        as_labelled, as_flipped = -F.logsigmoid(self.beta * h), -F.logsigmoid(-self.beta * h)
        match self.variant:
            case DPOVariant.sigmoid:
                return (1 - e) * as_labelled + e * as_flipped
            case DPOVariant.robust:
                return ((1 - e) * as_labelled - e * as_flipped) / (1 - 2 * e)
            case DPOVariant.ipo:
                return (h - 1 / (2 * self.beta)).square()
            case DPOVariant.hinge:
                return F.relu(1 - self.beta * h)

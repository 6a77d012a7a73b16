"""Simple preference optimisation: the mean log-prob is the reward, and there is no reference."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from alignment.losses.checks import pairwise
from alignment.losses.preference import mean_over_pairs, preference_metrics
from alignment.losses.types import LossOutput, Mean


@dataclass(slots=True)
class SimPOLoss:
    """L = -(1 - e) log s(z) - e log s(-z) - cpo_alpha p_c,  z = beta (p_c - p_r) - gamma,  e = label_smoothing,
    p = log pi(y) / |y|, the mean log-prob per token,  s the logistic sigmoid

    Meng, Xia, Chen 2405.14734, eq. 6, where e = 0 and there is no last term; with it the loss is CPO-SimPO's, as TRL
    has it. Reduction: mean over pairs, weighted where they carry weights.
    """

    beta: float = 2.0
    """Factor on the difference of the mean log-probs."""
    gamma: float = 1.0
    """The margin that the chosen reply's reward is to have. SimPO's code sets gamma / beta instead."""
    label_smoothing: float = 0.0
    """Share of the pairs whose preference is taken to be the wrong way round."""
    cpo_alpha: float = 0.0
    """Weight of the chosen reply's negative log-likelihood, mean over its tokens."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"loss.beta must be > 0 and finite, got {self.beta}")
        for key, value in (("gamma", self.gamma), ("cpo_alpha", self.cpo_alpha)):
            if not 0 <= value < math.inf:
                raise ValueError(f"loss.{key} must be >= 0 and finite, got {value}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"loss.label_smoothing must be in [0, 0.5), got {self.label_smoothing}")

    def __call__(
        self, chosen_logprobs: Tensor, rejected_logprobs: Tensor, *, weight: Tensor | None = None
    ) -> LossOutput:
        """All [B]. *_logprobs: MEAN log-prob per completion token, nats. weight: > 0, what each pair counts in the
        mean; None: 1.

        Metrics, over pairs alike: `rewards/*` of beta * mean log-prob, `logps/chosen`, `logps/rejected`, `nll`.
        Raises ValueError for wrong shapes and dtypes.
        """
        chosen, rejected = pairwise(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs)
        z, e = self.beta * (chosen - rejected) - self.gamma, self.label_smoothing
        losses = (1 - e) * -F.logsigmoid(z) + e * -F.logsigmoid(-z)
        metrics = preference_metrics(self.beta * chosen, self.beta * rejected) | {
            "logps/chosen": Mean.of(chosen),
            "logps/rejected": Mean.of(rejected),
            "nll": Mean.of(-chosen),
        }
        return LossOutput(mean_over_pairs(losses - self.cpo_alpha * chosen, weight), metrics)

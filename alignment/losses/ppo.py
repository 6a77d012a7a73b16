"""Proximal policy optimisation: the actor's loss and the critic's."""

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from alignment.losses.checks import counted, member
from alignment.losses.kl import MAX_LOG_RATIO, KLEstimator, kl_estimate
from alignment.losses.types import LossOutput, Mean


class ImportanceRatio(str, Enum):
    """What is clipped: the ratio of each token's probabilities, or one for a whole reply."""

    token = "token"
    """r_t = pi(a_t) / pi_old(a_t), of each token by itself."""
    sequence = "sequence"
    """One for all tokens of a reply, exp(mean_t log pi(a_t) / pi_old(a_t)), the geometric mean of theirs: of the MEAN
    log-probs (GSPO, 2507.18071, eqs. 5 and 7). With normalization=sequence."""
    product = "product"
    """One for all tokens of a reply, pi(y) / pi_old(y), the product of theirs: of the SUMMED log-probs, a reply as one
    action (RLOO, 2402.14740, eq. 8, whose gradient it has at 1; clipped as in TRL). With normalization=sequence."""


class Normalization(str, Enum):
    """What the policy's loss is a mean over."""

    token = "token"
    """sum_t l_t / number of tokens, over all replies together: long ones count more (DAPO, 2503.14476, eq. 8)."""
    sequence = "sequence"
    """Mean over replies of sum_t l_t / the reply's own tokens: all count alike (GRPO, 2402.03300, eq. 3; GSPO)."""
    constant = "constant"
    """Mean over replies of sum_t l_t / loss.policy.length, one number for all (Dr. GRPO, 2503.20783, section 3.2)."""


@dataclass(slots=True)
class PolicyLoss:
    """l_t = -min(r_t A_t, clamp(r_t, 1 - clip, 1 + clip_high) A_t),  r_t = pi(a_t) / pi_old(a_t)

    (Schulman et al. 1707.06347, eq. 7; clip_high above clip: DAPO, 2503.14476, eq. 10; null: clip.)

    Other ratios are in ImportanceRatio, the reductions in Normalization.
    """

    clip: float = 0.2
    """A ratio below 1 - clip, or above 1 + clip, moves the policy no further."""
    clip_high: float | None = None
    """The upper bound's own distance, above `clip` in DAPO. Null: clip."""
    ratio: ImportanceRatio = ImportanceRatio.token
    """What is clipped, and multiplies the advantage: each token's ratio, or one for the whole reply."""
    normalization: Normalization = Normalization.token
    """What the loss is a mean over, of a mini-batch's replies on all processes together (ppo.mini_batches=1: of the
    iteration's), however they are cut into batches of batch.max_tokens; l_t is a token's clipped loss."""
    length: int | None = None
    """normalization=constant: the tokens that each reply's sum is divided by. Null, in a recipe:
    generation.max_new_tokens."""

    def __post_init__(self) -> None:
        self.ratio = member(ImportanceRatio, "ratio", self.ratio)
        self.normalization = member(Normalization, "normalization", self.normalization)
        if not 0 < self.clip < 1:
            raise ValueError(f"clip must be in (0, 1), got {self.clip}")
        if self.clip_high is not None and not self.clip <= self.clip_high < math.inf:
            raise ValueError(f"clip_high must be >= clip ({self.clip}) and finite, or null, got {self.clip_high}")
        if self.ratio is not ImportanceRatio.token and self.normalization is not Normalization.sequence:
            rule = f"normalization must be sequence with ratio={self.ratio.value}"
            raise ValueError(f"{rule}, got {self.normalization.value}")
        if self.length is not None and (self.normalization is not Normalization.constant or self.length < 1):
            raise ValueError(f"length must be > 0 and needs normalization=constant, or be null, got {self.length}")

    @property
    def by_sequence(self) -> bool:
        """Whether it must know which tokens are of one reply, and is a mean over replies."""
        return self.normalization is not Normalization.token

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> LossOutput:
        """logprobs, old_logprobs (at the rollout): per token, nats; advantages; mask bool: all of one shape, which is
        [replies, T] but for normalization=token, to which any shape is one row of tokens.

        Metrics: `policy/clip_fraction` (share of tokens whose gradient the clip took), `policy/approx_kl` (k3 of
        KL(pi_old || pi), nats), `policy/ratio` (mean r). Raises ValueError for wrong shapes and dtypes, and without a
        `length` for normalization=constant.
        """
        logprobs, old_logprobs, advantages = counted(
            mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages
        )
        log_ratio = logprobs - old_logprobs
        if self.ratio is not ImportanceRatio.token:
            self._require_replies(mask)
            of_reply = log_ratio.sum(1, keepdim=True)
            is_mean = self.ratio is ImportanceRatio.sequence
            log_ratio = (of_reply / mask.sum(1, keepdim=True).clamp(min=1) if is_mean else of_reply).expand_as(mask)
        ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
        plain = ratio * advantages
        high = self.clip if self.clip_high is None else self.clip_high
        clipped = ratio.clamp(1 - self.clip, 1 + high) * advantages
        approx_kl = kl_estimate(old_logprobs.detach(), logprobs.detach(), KLEstimator.k3)
        metrics = {
            "policy/clip_fraction": Mean.of(clipped < plain, mask),
            "policy/approx_kl": Mean.of(approx_kl, mask),
            "policy/ratio": Mean.of(ratio, mask),
        }
        return LossOutput(self.reduce(-torch.minimum(plain, clipped), mask), metrics)

    def reduce(self, values: Tensor, mask: Tensor) -> Mean:
        """Values per token, zero outside the mask, as `normalization` has them."""
        if self.normalization is Normalization.token:
            return Mean.of(values, mask)
        self._require_replies(mask)
        sums = values.masked_fill(~mask, 0.0).sum(1)
        if self.normalization is Normalization.sequence:
            return Mean.of(sums / mask.sum(1).clamp(min=1), mask.any(1))
        if self.length is None:
            raise ValueError("normalization=constant needs length, the tokens to divide by, got None")
        return Mean.of(sums / self.length, mask.any(1))

    def _require_replies(self, mask: Tensor) -> None:
        if mask.dim() != 2:
            raise ValueError(f"normalization={self.normalization.value} needs [replies, T], got {list(mask.shape)}")


@dataclass(slots=True)
class ValueLoss:
    """L = 1/2 max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2)

    The critic of OpenAI's PPO (Huang et al. 2022, "The 37 Implementation Details of PPO", detail 9).
    clip: in units of reward, None = no clipping, L = 1/2 (V - R)^2. Reduction: mean over counted tokens.
    """

    clip: float | None = 0.2
    """A value may move this far from the one before the update and be learned from. Null: any distance."""

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be > 0 and finite, or null for no clipping, got {self.clip}")

    def __call__(self, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor) -> LossOutput:
        """values, old_values (at the rollout), returns: per token, in units of reward; mask bool: all of one shape.

        Metrics: `value/mean`, `value/error` (mean (V - R)^2), `value/drift` (mean |V - V_old|), `value/clip_fraction`
        (share of tokens whose gradient the clip took; 0 without clipping). Raises ValueError for wrong shapes and
        dtypes.
        """
        values, old_values, returns = counted(mask, values=values, old_values=old_values, returns=returns)
        plain = (values - returns).square()
        worst = plain
        if self.clip is not None:
            clipped_values = values.clamp(old_values - self.clip, old_values + self.clip)
            worst = torch.maximum(plain, (clipped_values - returns).square())
        metrics = {
            "value/mean": Mean.of(values, mask),
            "value/error": Mean.of(plain, mask),
            "value/drift": Mean.of((values - old_values).abs(), mask),
            "value/clip_fraction": Mean.of(worst > plain, mask),
        }
        return LossOutput(Mean.of(0.5 * worst, mask), metrics)

"""Direct preference optimisation and its nearest relatives."""

import math
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment.losses.checks import member, pairwise
from alignment.losses.preference import mean_over_pairs, preference_metrics
from alignment.losses.types import LossOutput, Mean


class DPOVariant(str, Enum):
    """The function of the log-ratios (see DPOLoss) that is minimised."""

    sigmoid = "sigmoid"
    """-(1 - e) log s(beta h - m) - e log s(-beta h) (Rafailov et al. 2305.18290, eq. 7; with e > 0 Mitchell 2023, cDPO,
    ericmitchell.ai/cdpo.pdf, eq. 3; with a margin, and e = 0, Amini, Vieira, Cotterell 2402.10571, whose offset it
    is)."""
    sigmoid_norm = "sigmoid_norm"
    """As sigmoid, with MEAN log-probs per token in the place of sums (Lambert et al. 2411.15124, Tulu 3's
    length-normalized DPO, where beta is 5)."""
    robust = "robust"
    """(-(1 - e) log s(beta h) + e log s(-beta h)) / (1 - 2e) (Chowdhury, Kini, Natarajan 2403.00409, rDPO): unbiased if
    a share e of the pairs is flipped."""
    ipo = "ipo"
    """(h - 1 / (2 beta))^2, of sums (Azar et al. 2310.12036, eq. 17, where beta is called tau). TRL divides each
    log-ratio by its completion's length first, and this does not."""
    hinge = "hinge"
    """max(0, 1 - beta h) (Liu et al. 2309.06657, RSO, where beta is called gamma)."""
    exo_pair = "exo_pair"
    """s(beta h) (log s(beta h) - log(1 - e)) + s(-beta h) (log s(-beta h) - log e) (Ji et al. 2402.00856, EXO, eq. 16):
    the KL to the preferences, smoothed by e > 0."""
    nca_pair = "nca_pair"
    """-log s(beta c) - 0.5 log s(-beta c) - 0.5 log s(-beta r) (Chen et al. 2402.05369, NCA, for two replies, where
    beta is called alpha)."""
    bco_pair = "bco_pair"
    """-log s(beta c) - log s(-beta r) (Jung et al. 2404.04656, BCO, without its shift of the rewards)."""
    sppo_hard = "sppo_hard"
    """(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 (Wu et al. 2405.00675, SPPO, eq. 4.7, where the chosen reply wins for
    certain and 1 / beta is called eta)."""
    apo_zero = "apo_zero"
    """s(-beta c) + s(beta r) (D'Oosterlinck et al. 2408.06266, APO, eq. 7): for chosen replies better than the model's
    own."""
    apo_down = "apo_down"
    """s(beta c) + s(-beta h) (the same, eq. 8): for chosen replies that are worse than the model's own."""
    discopop = "discopop"
    """s(-z / tau) (-log s(z)) + s(z / tau) exp(-z), z = beta h, tau = loss.discopop_tau (Lu et al. 2406.08414, eq.
    5)."""
    aot = "aot"
    """-(1 - e) log s(beta (h - d)) - e log s(-beta (h - d)), h - d = g - g_ref of the pair that has the rank in the
    reference's order that this one has in the policy's, g = log pi(y_c) - log pi(y_r) (Melnyk et al. 2406.05882, AOT,
    paired): the distribution of g over the step's pairs, not each g, is to exceed the reference's."""


WITH_MARGIN = (DPOVariant.sigmoid, DPOVariant.sigmoid_norm)
SMOOTHED = (*WITH_MARGIN, DPOVariant.robust, DPOVariant.exo_pair, DPOVariant.aot)
DISCOPOP_TAU = 0.05


@dataclass(slots=True)
class DPOLoss:
    """c = log pi(y_c) - log pi_ref(y_c),  r = log pi(y_r) - log pi_ref(y_r),  h = c - r,  e = label_smoothing,
    s the logistic sigmoid,  m = margin_scale * margin, where the pairs carry margins, else 0

    What is minimised of each pair is under its name in DPOVariant.

    Each plus rpo_alpha * nll(y_c), where that is above 0 (Pang et al. 2404.19733, iterative RPO, eq. 1).
    Reduction: mean over pairs, weighted where they carry weights. TRL's aot_unpaired is left out.
    """

    beta: float = 0.1
    """How strongly the policy is held to the reference: its log-ratios are multiplied by this."""
    label_smoothing: float = 0.0
    """Share of the pairs whose preference is taken to be the wrong way round."""
    variant: DPOVariant = DPOVariant.sigmoid
    """The function of the log-ratios that is minimised, by TRL's names: c = log pi - log pi_ref of the chosen reply, r
    of the rejected, each SUMMED over its tokens (in sigmoid_norm alone their MEAN), h = c - r, e =
    loss.label_smoothing, m = loss.margin_scale * the pair's margin, s the logistic sigmoid."""
    margin_scale: float = 1.0
    """Factor on the pairs' margins, which `data.margin` brings (ODPO's alpha)."""
    rpo_alpha: float = 0.0
    """Weight of the chosen reply's negative log-likelihood, mean over its tokens."""
    discopop_tau: float = DISCOPOP_TAU
    """Where discopop goes over from the logistic to the exponential loss."""

    def __post_init__(self) -> None:
        self.variant = member(DPOVariant, "loss.variant", self.variant)
        if not 0 < self.beta < math.inf:
            raise ValueError(f"loss.beta must be > 0 and finite, got {self.beta}")
        self._check_smoothing()
        for key, value in (("margin_scale", self.margin_scale), ("rpo_alpha", self.rpo_alpha)):
            if not 0 <= value < math.inf:
                raise ValueError(f"loss.{key} must be >= 0 and finite, got {value}")
        if not 0 < self.discopop_tau <= 1:  # above 1 the loss of a pair far on the wrong side has no bound
            raise ValueError(f"loss.discopop_tau must be in (0, 1], got {self.discopop_tau}")
        if self.discopop_tau != DISCOPOP_TAU and self.variant is not DPOVariant.discopop:
            raise ValueError(f"loss.discopop_tau goes with loss.variant=discopop, got {self.discopop_tau}")

    def _check_smoothing(self) -> None:
        variant, smoothing = self.variant.value, self.label_smoothing
        if not 0 <= smoothing < 0.5:
            raise ValueError(f"loss.label_smoothing must be in [0, 0.5), got {smoothing}")
        if self.variant not in SMOOTHED and smoothing != 0:
            rule = f"loss.label_smoothing must be 0 for loss.variant={variant}, which has no such term"
            raise ValueError(f"{rule}, got {smoothing}")
        if self.variant is DPOVariant.robust and smoothing == 0:
            raise ValueError("loss.label_smoothing must be > 0 for loss.variant=robust (at 0 it is sigmoid), got 0")
        if self.variant is DPOVariant.exo_pair and smoothing == 0:
            raise ValueError("loss.label_smoothing must be > 0 for loss.variant=exo_pair (its paper: 1e-3), got 0")

    def __call__(
        self,
        chosen_logprobs: Tensor,
        rejected_logprobs: Tensor,
        ref_chosen_logprobs: Tensor,
        ref_rejected_logprobs: Tensor,
        *,
        margin: Tensor | None = None,
        chosen_nll: Tensor | None = None,
        weight: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> LossOutput:
        """All [B]. *_logprobs: of each completion, SUMMED over its tokens (sigmoid_norm: their MEAN), nats, of the
        policy and of the reference. margin: >= 0, in units of beta h; None: these pairs carry none. chosen_nll: mean
        negative log-prob per token of the chosen completion, nats, which rpo_alpha > 0 requires and 0 does not take.
        weight: > 0, what each pair counts in the mean; None: 1. shift: d of aot, nats, which the others do not take:
        what the reference's log-ratio g_ref of the pair of the same rank has over that of this pair.

        TRL's ipo divides each log-ratio by its completion's length: pass mean log-probs to do the same.
        Metrics, over pairs alike: `rewards/*` of the implicit reward beta (log pi - log pi_ref), `logps/chosen`,
        `logps/rejected`, `nll` where it has a weight. Raises ValueError for wrong shapes and dtypes, and for an
        argument that the variant has no use for or lacks.
        """
        chosen, rejected, ref_chosen, ref_rejected = pairwise(
            chosen_logprobs=chosen_logprobs,
            rejected_logprobs=rejected_logprobs,
            ref_chosen_logprobs=ref_chosen_logprobs,
            ref_rejected_logprobs=ref_rejected_logprobs,
        )
        chosen_ratio, rejected_ratio = chosen - ref_chosen, rejected - ref_rejected
        metrics = preference_metrics(self.beta * chosen_ratio, self.beta * rejected_ratio, weight)
        pairs = None if weight is None else weight > 0
        metrics |= {"logps/chosen": Mean.of(chosen, pairs), "logps/rejected": Mean.of(rejected, pairs)}
        if (self.variant is DPOVariant.aot) != (shift is not None):
            raise ValueError("shift goes with loss.variant=aot, and only with it")
        offset = self._offset(chosen, margin) if shift is None else self.beta * pairwise(chosen=chosen, shift=shift)[1]
        losses = self._losses(chosen_ratio, rejected_ratio, offset)
        if (self.rpo_alpha > 0) != (chosen_nll is not None):
            raise ValueError("chosen_nll goes with loss.rpo_alpha > 0, and only with it")
        if chosen_nll is not None:
            _, nll = pairwise(chosen_logprobs=chosen, chosen_nll=chosen_nll)
            losses, metrics = losses + self.rpo_alpha * nll, metrics | {"nll": Mean.of(nll, pairs)}
        return LossOutput(mean_over_pairs(losses, weight), metrics)

    def _offset(self, chosen: Tensor, margin: Tensor | None) -> Tensor | None:
        """m, or None where the pairs carry no margins."""
        if margin is None:
            if self.margin_scale not in (0.0, 1.0):
                raise ValueError(f"loss.margin_scale must be 1 (or 0) for pairs without one, got {self.margin_scale}")
            return None
        if self.variant not in WITH_MARGIN or self.label_smoothing != 0:
            names = " and ".join(each.value for each in WITH_MARGIN)
            raise ValueError(f"a margin goes with loss.variant {names} and loss.label_smoothing=0, got {self}")
        return self.margin_scale * pairwise(chosen_logprobs=chosen, margin=margin)[1]

    def _losses(self, c: Tensor, r: Tensor, offset: Tensor | None) -> Tensor:
        b, e, h = self.beta, self.label_smoothing, c - r
        z = b * h if offset is None else b * h - offset
        match self.variant:
            case DPOVariant.sigmoid | DPOVariant.sigmoid_norm | DPOVariant.aot:
                return (1 - e) * -F.logsigmoid(z) + e * -F.logsigmoid(-z)
            case DPOVariant.robust:
                return ((1 - e) * -F.logsigmoid(z) - e * -F.logsigmoid(-z)) / (1 - 2 * e)
            case DPOVariant.ipo:
                return (h - 1 / (2 * b)).square()
            case DPOVariant.hinge:
                return F.relu(1 - z)
            case DPOVariant.exo_pair:
                kept = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-e))
                return kept + torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(e))
            case DPOVariant.nca_pair:
                return -F.logsigmoid(b * c) - 0.5 * F.logsigmoid(-b * c) - 0.5 * F.logsigmoid(-b * r)
            case DPOVariant.bco_pair:
                return -F.logsigmoid(b * c) - F.logsigmoid(-b * r)
            case DPOVariant.sppo_hard:
                return (c - 1 / (2 * b)).square() + (r + 1 / (2 * b)).square()
            case DPOVariant.apo_zero:
                return torch.sigmoid(-b * c) + torch.sigmoid(b * r)
            case DPOVariant.apo_down:
                return torch.sigmoid(b * c) + torch.sigmoid(-z)
            case DPOVariant.discopop:
                x = z / self.discopop_tau  # s(x) exp(-z) in one exponent: the second factor alone overflows
                return torch.sigmoid(-x) * -F.logsigmoid(z) + torch.exp(F.logsigmoid(x) - z)

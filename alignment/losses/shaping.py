"""Reward shaping: what is done to scores before a policy learns from them. Tensors of any shape, one number for each
reply; no gradients."""

import math

import torch
from torch import Tensor

from alignment.losses.checks import at_least_float32, require_bool, require_shape


@torch.no_grad()
def normalize_scores(scores: Tensor, *, mean: float, std: float) -> Tensor:
    """(score - mean) / std, with the mean and standard deviation that a reward model's scores had after its training.

    Raises ValueError unless mean is finite and std > 0 and finite.
    """
    if not math.isfinite(mean):
        raise ValueError(f"mean must be finite, got {mean}")
    if not 0 < std < math.inf:
        raise ValueError(f"std must be > 0 and finite, got {std}")
    return (at_least_float32(scores) - mean) / std


@torch.no_grad()
def choose_safety_or_helpfulness(helpfulness: Tensor, safety: Tensor, is_safety: Tensor, *, threshold: float) -> Tensor:
    """Llama 2's choice between its two reward models (Touvron et al. 2307.09288, section 3.2.3):

    R_c(g | p) = R_s(g | p)  if is_safety(p) or R_s(g | p) < threshold,  else R_h(g | p)

    and the linear score that the paper whitens next, logit(R_c). R_s and R_h are probabilities, sigmoid(score), so the
    logit of the chosen one is its score, taken here as it is and never rounded to 0 or 1.

    helpfulness, safety: scores before the sigmoid. is_safety: bool, prompts tagged safety. All of one shape; returns
    that shape. threshold: a probability, 0.15 in the paper. Raises ValueError for other shapes and dtypes and a
    threshold outside [0, 1].
    """
    require_bool(is_safety)
    require_shape("safety", safety, "helpfulness", helpfulness)
    require_shape("is_safety", is_safety, "helpfulness", helpfulness)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    helpfulness, safety = at_least_float32(helpfulness), at_least_float32(safety)
    return torch.where(is_safety | (safety.sigmoid() < threshold), safety, helpfulness)


@torch.no_grad()
def clip_scores(scores: Tensor, *, limit: float) -> Tensor:
    """Scores cut to [-limit, limit]. Raises ValueError unless limit > 0."""
    if not limit > 0:
        raise ValueError(f"limit must be > 0, got {limit}")
    return at_least_float32(scores).clamp(-limit, limit)


@torch.no_grad()
def subtract_missing_eos_penalty(scores: Tensor, finished: Tensor, *, penalty: float) -> Tensor:
    """The score less `penalty` where a reply was cut before its end, as TRL's missing_eos_penalty.

    The "EOS trick" of Huang et al. 2403.17031, section 7, puts -1 in the place of such a score, whatever it was.

    finished: bool, same shape. Raises ValueError for another shape or dtype and a negative penalty.
    """
    require_bool(finished)
    require_shape("finished", finished, "scores", scores)
    if not 0 <= penalty < math.inf:
        raise ValueError(f"penalty must be >= 0 and finite, got {penalty}")
    return at_least_float32(scores) - penalty * ~finished


@torch.no_grad()
def subtract_length_penalty(scores: Tensor, lengths: Tensor, *, penalty: float, free: int) -> Tensor:
    """score - penalty max(0, length - free): linear in the tokens beyond the first `free`.

    With penalty 1 / (L_max - free) this is the soft overlong punishment of DAPO (Yu et al. 2503.14476).

    lengths: integers, same shape, EOS included. Raises ValueError for another shape, a negative penalty or free.
    """
    require_shape("lengths", lengths, "scores", scores)
    if not 0 <= penalty < math.inf:
        raise ValueError(f"penalty must be >= 0 and finite, got {penalty}")
    if free < 0:
        raise ValueError(f"free must be >= 0, got {free}")
    return at_least_float32(scores) - penalty * (lengths - free).clamp(min=0)

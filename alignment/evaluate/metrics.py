"""Figures computed from scores and replies, each with its uncertainty. Plain numpy, no models.

Legend: `N` prompts, `P` preference pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000
SEED = 20_240_501
_CHUNK = 2_000_000  # drawn indices held at once: 16 MB
Z95 = 1.959963984540054  # the normal distribution's 97.5th percentile


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` values and the 95% confidence interval around it."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class MarginBucket:
    """Accuracy on the pairs whose margin lies in [low, high]."""

    low: float
    high: float
    accuracy: Interval


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Mean predicted probability that the higher-scored reply was preferred, and how often it was."""

    predicted: float
    observed: Interval


def confidence_interval(values: Sequence[float]) -> Interval:
    """Mean over `values` [N] with a percentile-bootstrap 95% interval (Efron 1979), the same for the same input.

    Raises ValueError for fewer than two values, where a resample says nothing of the spread, and for non-finite ones.
    """
    data = _vector(values, "values")
    means = np.concatenate([data[drawn].mean(axis=1) for drawn in _resamples(len(data))])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(data.mean()), float(low), float(high), len(data))


def ratio_interval(totals: Sequence[float], counts: Sequence[float]) -> Interval:
    """The sum of `totals` [N] over that of `counts` [N], such as nats over tokens, with a percentile-bootstrap 95%
    interval: a resample draws rows, hence both of a row together."""
    above, below = _vector(totals, "totals"), _vector(counts, "counts")
    _same_length(totals=above, counts=below)
    ratios = np.concatenate([above[drawn].sum(1) / below[drawn].sum(1) for drawn in _resamples(len(above))])
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(above.sum() / below.sum()), float(low), float(high), len(above))


def perplexity_difference(nll: Sequence[float], baseline: Sequence[float], tokens: Sequence[float]) -> Interval:
    """exp(sum of `nll` / sum of `tokens`) less the same of `baseline`, all [N], with a percentile-bootstrap 95%
    interval: a resample draws rows, hence all three of a row together."""
    first, second, counts = _vector(nll, "nll"), _vector(baseline, "baseline"), _vector(tokens, "tokens")
    _same_length(nll=first, baseline=second, tokens=counts)

    def gap(rows: np.ndarray) -> np.ndarray:
        below = counts[rows].sum(-1)
        found: np.ndarray = np.exp(first[rows].sum(-1) / below) - np.exp(second[rows].sum(-1) / below)
        return found

    low, high = np.quantile(np.concatenate([gap(drawn) for drawn in _resamples(len(first))]), [0.025, 0.975])
    return Interval(float(gap(np.arange(len(first)))), float(low), float(high), len(first))


def _resamples(n: int) -> Iterator[np.ndarray]:
    """Indices of `NUM_RESAMPLES` resamples of n values, the same each time, as many rows at a time as memory is for."""
    if n < 2:
        raise ValueError(f"a confidence interval needs at least 2 values, got {n}")
    rng = np.random.default_rng(SEED)
    rows = max(1, _CHUNK // n)
    for start in range(0, NUM_RESAMPLES, rows):
        yield rng.integers(0, n, size=(min(rows, NUM_RESAMPLES - start), n))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Mean of `values - baseline` [N], prompt by prompt.

    A resample draws prompts, hence both scores of a prompt together: the spread that the two share cancels, and the
    interval is narrower than that of two independent samples.
    """
    first, second = _vector(values, "values"), _vector(baseline, "baseline")
    _same_length(values=first, baseline=second)
    return confidence_interval(first - second)


def proportion(successes: float, n: int) -> Interval:
    """Wilson's 95% score interval (1927) for `successes` out of `n`; a tie may count as half a success.

    Unlike a bootstrap it keeps its width when every trial succeeded, and it is defined for n = 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs n >= 1 and 0 <= successes <= n, got {successes} out of {n}")
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * float(np.sqrt(share * (1 - share) / n + z2 / (4 * n * n)))
    # At 0 and n the exact ends are 0 and 1; rounding would leave them a bit inside.
    return Interval(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)), n)


def win_rate(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Share of prompts on which `a` [N] scores above `b` [N]; a tie counts one half."""
    first, second = _vector(a, "a"), _vector(b, "b")
    _same_length(a=first, b=second)
    return proportion(float((first > second).sum() + 0.5 * (first == second).sum()), len(first))


def pair_accuracy(chosen_scores: Sequence[float], rejected_scores: Sequence[float]) -> Interval:
    """Share of pairs [P] whose chosen reply scores strictly above the rejected one, as `rewards/accuracy`."""
    chosen, rejected = _vector(chosen_scores, "chosen_scores"), _vector(rejected_scores, "rejected_scores")
    _same_length(chosen_scores=chosen, rejected_scores=rejected)
    return proportion(float((chosen > rejected).sum()), len(chosen))


def accuracy_by_margin(
    chosen_scores: Sequence[float],
    rejected_scores: Sequence[float],
    margins: Sequence[float],
    *,
    num_buckets: int = 5,
) -> list[MarginBucket]:
    """Pair accuracy by the annotated margin [P], smallest margins first (Llama 2, arXiv:2307.09288, table 8).

    A rating scale of up to `num_buckets` values has one bucket per value; anything finer is cut at its quantiles.
    """
    chosen, rejected = _vector(chosen_scores, "chosen_scores"), _vector(rejected_scores, "rejected_scores")
    margin = _vector(margins, "margins")
    _same_length(chosen_scores=chosen, rejected_scores=rejected, margins=margin)
    levels = np.unique(margin)
    if len(levels) <= num_buckets:
        bucket = np.searchsorted(levels, margin)
    else:
        inner_edges = np.unique(np.quantile(margin, np.linspace(0, 1, num_buckets + 1)[1:-1]))
        bucket = np.searchsorted(inner_edges, margin, side="right")
    rows = []
    for index in np.unique(bucket):
        mask = bucket == index
        accuracy = proportion(float((chosen[mask] > rejected[mask]).sum()), int(mask.sum()))
        rows.append(MarginBucket(float(margin[mask].min()), float(margin[mask].max()), accuracy))
    return rows


def calibration(
    chosen_scores: Sequence[float], rejected_scores: Sequence[float], *, num_bins: int = 10
) -> list[CalibrationBin]:
    """Bradley-Terry probability of the higher-scored reply, sigmoid(|r_c - r_r|), against how often it was the chosen.

    Bins have equal width on [0.5, 1] and empty ones are left out. Every pair counts once, from the model's own side:
    always asking for P(chosen) would observe 1 in each bin. Equal scores predict 0.5 and are half observed.
    """
    chosen, rejected = _vector(chosen_scores, "chosen_scores"), _vector(rejected_scores, "rejected_scores")
    _same_length(chosen_scores=chosen, rejected_scores=rejected)
    gap = chosen - rejected
    predicted = 1 / (1 + np.exp(-np.abs(gap)))
    agreed = (gap > 0) + 0.5 * (gap == 0)
    bucket = np.minimum(((predicted - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    return [
        CalibrationBin(float(predicted[mask].mean()), proportion(float(agreed[mask].sum()), int(mask.sum())))
        for mask in (bucket == index for index in np.unique(bucket))
    ]


def distinct_n(replies: Sequence[str], n: int = 2) -> float | None:
    """Distinct word n-grams as a share of all of them, over all replies together (Li et al., arXiv:1510.03055).

    Words are split at white space. None where no reply has `n` words: the share is then undefined.
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    grams = []
    for reply in replies:
        words = reply.split()
        grams += [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _vector(values: Sequence[float], name: str) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers, got shape {data.shape}")
    if not np.isfinite(data).all():
        first = int(np.flatnonzero(~np.isfinite(data))[0])
        raise ValueError(f"{name} must be finite, got {data[first]} at position {first}")
    return data


def _same_length(**vectors: np.ndarray) -> None:
    if len({len(vector) for vector in vectors.values()}) > 1:
        lengths = ", ".join(f"{name} {len(vector)}" for name, vector in vectors.items())
        raise ValueError(f"lengths must be equal, got {lengths}")

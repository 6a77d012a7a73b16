"""The figures of the methods that are compared, each with its interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignment.evaluate.metrics import (
    Interval,
    confidence_interval,
    distinct_n,
    paired_difference,
    proportion,
    ratio_interval,
    win_rate,
)
from alignment.evaluate.results import CompletionsResult, Evaluation, MethodResult


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method's figures; None where the scores behind a figure do not exist (or compare the baseline to itself)."""

    name: str
    gold: Interval | None
    gold_difference: Interval | None
    reward: Interval | None
    reward_difference: Interval | None
    kl: Interval | None
    length: Interval | None
    distinct_2: float | None
    win_rate: Interval | None
    finished: Interval | None
    nll: Interval | None
    """Nats per token of the data's completions."""
    perplexity: Interval | None
    """Its exponential."""
    bits_per_byte: Interval | None
    bits_per_byte_difference: Interval | None


def compare(evaluation: Evaluation) -> list[MethodRow]:
    """The figures of every method, in the order given."""
    return [_row(method, evaluation.baseline_result) for method in evaluation.methods]


def deciding_score(evaluation: Evaluation) -> str | None:
    """The score that decides differences and wins: the gold score, else the learned reward, else nothing does."""
    if evaluation.baseline_result.gold is not None:
        return "gold score"
    return "learned reward" if evaluation.baseline_result.reward is not None else None


def _row(method: MethodResult, base: MethodResult) -> MethodRow:
    other = method.name != base.name
    by_gold = base.gold is not None
    ours, theirs = (method.gold, base.gold) if by_gold else (method.reward, _where_alike(method, base))
    return MethodRow(
        name=method.name,
        gold=None if method.gold is None else confidence_interval(method.gold),
        gold_difference=_against(paired_difference, method.gold, base.gold) if other else None,
        reward=None if method.reward is None else confidence_interval(method.reward),
        reward_difference=_against(paired_difference, method.reward, base.reward) if other else None,
        kl=None if method.kl is None else confidence_interval(method.kl),
        length=confidence_interval(method.lengths) if method.lengths else None,
        distinct_2=distinct_n(method.replies),
        win_rate=_against(win_rate, ours, theirs) if other else None,
        finished=_share(method.finished),
        **_of_completions(method.completions, base.completions if other else None),
    )


def _share(flags: list[bool] | None) -> Interval | None:
    return proportion(sum(flags), len(flags)) if flags else None


def _of_completions(own: CompletionsResult | None, base: CompletionsResult | None) -> dict[str, Interval | None]:
    if own is None:
        return dict.fromkeys(("nll", "perplexity", "bits_per_byte", "bits_per_byte_difference"))
    nll = ratio_interval(own.nll, own.tokens)
    bits = [nats / math.log(2) for nats in own.nll]
    difference = None
    if base is not None and base.num_bytes == own.num_bytes:  # else their limits have cut them at different places
        gap = [(mine - theirs) / math.log(2) for mine, theirs in zip(own.nll, base.nll, strict=True)]
        difference = ratio_interval(gap, own.num_bytes)
    return {
        "nll": nll,
        "perplexity": Interval(math.exp(nll.mean), math.exp(nll.low), math.exp(nll.high), nll.n),
        "bits_per_byte": ratio_interval(bits, own.num_bytes),
        "bits_per_byte_difference": difference,
    }


def _where_alike(method: MethodResult, base: MethodResult) -> list[float] | None:
    """The baseline's learned rewards, with the method's own for a reply that is the same: a tie, which the rounding of
    two batches would break."""
    if method.reward is None or base.reward is None:
        return None
    rows = zip(method.reward, base.reward, method.replies, base.replies, strict=True)
    return [mine if reply == other else theirs for mine, theirs, reply, other in rows]


def _against(
    figure: Callable[[Sequence[float], Sequence[float]], Interval], ours: list[float] | None, theirs: list[float] | None
) -> Interval | None:
    return None if ours is None or theirs is None else figure(ours, theirs)

"""A model beside itself in fewer bits: the figures, their columns, and what each of them means."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from alignment.evaluate.columns import Column, shown
from alignment.evaluate.metrics import (
    Interval,
    pair_accuracy,
    paired_difference,
    perplexity_difference,
    proportion,
    ratio_interval,
)
from alignment.evaluate.results import QuantizedResult, QuantizedResults

FULL = "full"  # the model as it is
MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class QuantizedRow:
    """The figures of one self; None where there is nothing to have them from, or they compare the full model with
    itself."""

    name: str
    num_bytes: int
    relative_error: float | None
    mean_squared_error: float | None
    largest_error: float | None
    kl: Interval | None
    """Nats a token."""
    same: Interval | None
    """Share of tokens."""
    perplexity_difference: Interval | None
    accuracy: Interval | None
    accuracy_difference: Interval | None
    changed: Interval | None
    """Share of pairs."""


def rows_of(results: QuantizedResults) -> list[QuantizedRow]:
    """The full model first, then each self."""
    return [_row(each, results.selves[0]) for each in results.selves]


def _row(own: QuantizedResult, full: QuantizedResult) -> QuantizedRow:
    relative, squared, largest = own.error or (None, None, None)
    found, base, is_other = own.completions, full.completions, own is not full
    gap = kl = same = None
    if is_other and found is not None and base is not None and own.kl is not None and own.same is not None:
        gap = perplexity_difference(found.nll, base.nll, found.tokens)
        kl, same = ratio_interval(own.kl, found.tokens), ratio_interval(own.same, found.tokens)
    ours, theirs = _right(own), _right(full)
    return QuantizedRow(
        name=own.name,
        num_bytes=own.num_bytes,
        relative_error=relative,
        mean_squared_error=squared,
        largest_error=largest,
        kl=kl,
        same=same,
        perplexity_difference=gap,
        accuracy=None if own.preferences is None else pair_accuracy(*zip(*own.preferences, strict=True)),
        accuracy_difference=paired_difference(ours, theirs) if is_other and len(ours) > 1 else None,
        changed=proportion(sum(a != b for a, b in zip(ours, theirs, strict=True)), len(ours))
        if is_other and ours
        else None,
    )


def _right(result: QuantizedResult) -> list[float]:
    """1 of each pair whose chosen reply it prefers, else 0."""
    return [float(chosen > rejected) for chosen, rejected in result.preferences or []]


def title_of(results: QuantizedResults) -> str:
    return f"{results.model} beside its quantised selves"


def quantized_columns(results: QuantizedResults) -> list[Column]:
    rows = rows_of(results)
    every = [
        Column(
            "Weights",
            "MB",
            "size\nMB",
            [row.num_bytes / MEGABYTE for row in rows],
            words="size: 10^6 bytes of all weights as they are held here; of absmax and zeropoint what their codes and "
            "scales would take, for the rounded weights are held as they were",
        ),
        Column(
            "Error of weights",
            "% of their norm",
            "error\n%",
            [row.relative_error for row in rows],
            scale=100,
            words="error: how far the quantised weights W' of linear layers are off, ||W - W'|| / ||W||",
        ),
        Column(
            "KL per token",
            "nats",
            "KL per\ntoken",
            [row.kl for row in rows],
            words="KL per token: nats from the full model's distribution p of the next token to the self's q, sum of "
            "p log(p / q), mean over the completions' tokens; 0 where nothing has changed",
        ),
        Column(
            "Same next token",
            "% of tokens",
            "same\ntoken %",
            [row.same for row in rows],
            scale=100,
            words="same token: tokens of the completions before which both hold the same token for the likeliest",
        ),
        Column(
            "Perplexity",
            f"less {FULL}'s",
            f"perplexity\n- {FULL}",
            [row.perplexity_difference for row in rows],
            is_difference=True,
            is_score=True,
            words="perplexity - full: of the completions, the self's less the full model's, paired by row",
        ),
        *_columns_of_pairs(rows, is_reward_model=results.is_reward_model),
    ]
    return shown(every)


def _columns_of_pairs(rows: list[QuantizedRow], *, is_reward_model: bool) -> list[Column]:
    by = "scores higher" if is_reward_model else "has the higher log-prob, summed over its tokens"
    of = "pairs" if is_reward_model else "pairs of data.eval"
    return [
        Column(
            "Accuracy" if is_reward_model else "Prefers the chosen reply",
            "% of pairs",
            "accuracy\n%" if is_reward_model else "prefers\nchosen %",
            [row.accuracy for row in rows],
            scale=100,
            words=f"{'accuracy' if is_reward_model else 'prefers chosen'}: {of} whose chosen reply {by}",
        ),
        Column(
            "Preferences changed",
            "% of pairs",
            "changed\n%",
            [row.changed for row in rows],
            scale=100,
            words="changed: pairs of which it prefers another reply than the full model (intervals: the report)",
        ),
    ]


def quantized_notes(results: QuantizedResults) -> Iterator[str]:
    """What the columns are, a line each."""
    yield from (column.words for column in quantized_columns(results) if column.words)


def quantized_summary(results: QuantizedResults) -> dict[str, Any]:
    """Every figure as plain JSON values; one that does not exist has no key."""
    rows = [{key: value for key, value in asdict(row).items() if value is not None} for row in rows_of(results)]
    return {"model": results.model, "selves": rows}

"""Perplexity against the length of what is read: by where in its row, prompt and completion together, a token stands.

It says what a model makes of long texts, and what scaling its positions buys.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alignment.evaluate.metrics import Interval, ratio_interval
from alignment.evaluate.results import CompletionsResult, Evaluation

FIRST = 64  # tokens of the first span; each that follows ends at twice the one before


@dataclass(frozen=True, slots=True)
class Span:
    """What a model gives the tokens that stand after `after` and up to `to` others, its own included."""

    after: int
    to: int
    tokens: int
    perplexity: Interval | None
    """Over the rows that have such tokens; None where fewer than two have."""


def bounds(longest: int) -> list[int]:
    """The ends of the spans of rows of up to so many tokens."""
    found = [FIRST]
    while found[-1] < longest:
        found.append(2 * found[-1])
    return found


def spans(result: CompletionsResult) -> list[Span]:
    """Those in which there are tokens; [] where all are in one, which says no more than all of them together."""
    found = []
    for place, to in enumerate(bounds(FIRST * 2 ** max(0, len(result.span_tokens[0]) - 1))):
        rows = [row for row, counts in enumerate(result.span_tokens) if counts[place]]
        tokens = [result.span_tokens[row][place] for row in rows]
        if tokens:
            nll = [result.span_nll[row][place] for row in rows]
            found.append(Span(to // 2 if place else 0, to, sum(tokens), _perplexity(nll, tokens)))
    return found if len(found) > 1 else []


def _perplexity(nll: Sequence[float], tokens: Sequence[int]) -> Interval | None:
    if len(tokens) < 2:
        return None
    found = ratio_interval(nll, tokens)
    return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.n)


def spans_of(evaluation: Evaluation) -> dict[str, list[Span]]:
    """name -> its spans; {} where no model has more than one."""
    measured = {each.name: each.completions for each in evaluation.methods if each.completions is not None}
    return {name: found for name, result in measured.items() if (found := spans(result))}


def span_words(span: Span) -> str:
    """Its perplexity, interval, tokens and rows, a line each."""
    if span.perplexity is None:
        return f"one row\n{span.tokens} tokens"
    own = span.perplexity
    return f"{own.mean:.4g}\n[{own.low:.4g}, {own.high:.4g}]\n{span.tokens} tokens, {own.n} rows"

"""Perplexity by where in its row a token stands."""

import math

import numpy as np
import pytest

from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.evaluate.positions import bounds, spans
from alignment.evaluate.results import CompletionsResult
from alignment.tasks.perplexity import span_counts


def example(prompt: int, completion: int, learned: list[int] | None = None) -> Example:
    ids = np.zeros(completion, dtype=np.int32)
    mask = None if learned is None else (np.isin(np.arange(completion), learned),)
    return Example(np.zeros(prompt, dtype=np.int32), (ids,), None, Source("a", 1), (True,), learned=mask)


def test_spans_end_at_powers_of_two() -> None:
    assert [bounds(size) for size in (1, 64, 65, 300)] == [[64], [64], [64, 128], [64, 128, 256, 512]]


def test_a_token_is_counted_where_it_stands_in_its_row() -> None:
    """The 64th of a row is in the first span, the 65th in the second; those of others' turns are in none."""
    assert span_counts([example(60, 4), example(60, 70), example(63, 3, [0, 2]), example(128, 1)]) == [
        [4, 0, 0],
        [4, 64, 2],
        [1, 1, 0],
        [0, 0, 1],
    ]


def test_figures_are_of_the_rows_that_reach_a_span() -> None:
    result = CompletionsResult(
        [6.0, 12.0, 1.0], [4, 6, 1], [1, 1, 1], [[2.0, 4.0], [4.0, 8.0], [1.0, 0.0]], [[2, 2], [2, 4], [1, 0]]
    )
    first, second = spans(result)
    assert first.perplexity is not None and second.perplexity is not None
    assert (first.after, first.to, first.tokens, first.perplexity.n) == (0, 64, 5, 3)
    assert (second.after, second.to, second.tokens, second.perplexity.n) == (64, 128, 6, 2)
    assert first.perplexity.mean == pytest.approx(math.exp(7 / 5))
    assert second.perplexity.mean == pytest.approx(math.exp(12 / 6))
    assert second.perplexity.low <= second.perplexity.mean <= second.perplexity.high


def test_one_row_has_no_interval_and_one_span_is_no_table() -> None:
    alone = CompletionsResult([1.0, 3.0], [1, 2], [1, 1], [[1.0, 0.0], [1.0, 2.0]], [[1, 0], [1, 1]])
    assert [span.perplexity is None for span in spans(alone)] == [False, True]
    short = CompletionsResult([1.0, 3.0], [1, 2], [1, 1], [[1.0], [3.0]], [[1], [2]])
    assert spans(short) == []

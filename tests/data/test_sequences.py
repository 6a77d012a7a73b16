"""Rows that are nobody's copy: chosen, chained, and their columns of numbers."""

import tracemalloc

import numpy as np
import pytest

from alignment.data.sequences import chained, chosen, column, gathered

LOW, HIGH = [3, 2**62 + 1], [2**64 - 1, 2**63 + 3]


@pytest.mark.parametrize("parts", [[LOW, HIGH], [[*LOW, *HIGH]], [[LOW[0]], [LOW[1], *HIGH]]])
def test_hashes_on_both_sides_of_the_signed_integers_stay_what_they_are(parts: list[list[int]]) -> None:
    """numpy makes float64 of them where it is not told, and 2**62 + 1 is none."""
    rows = chained([chosen(tuple(part), np.arange(len(part))) for part in parts])
    assert column(rows, "hash", int, np.uint64).tolist() == LOW + HIGH
    assert column(LOW + HIGH, "hash", int, np.uint64).tolist() == LOW + HIGH


def test_what_a_thousand_parts_have_is_gathered_with_a_few_numbers_a_row() -> None:
    """In whatever order it is asked for; a mask of all rows for each part would be a gigabyte for a million rows."""
    parts, each = 1000, 200
    at = np.random.default_rng(0).permutation(parts * each)[: parts * each // 2]
    tracemalloc.start()
    found = gathered([each] * parts, lambda part, some: part * each + np.arange(each)[some], at)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(found, at)
    assert most < 16 * at.nbytes

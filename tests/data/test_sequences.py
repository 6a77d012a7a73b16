"""Rows that are nobody's copy: chosen, chained, and their columns of numbers."""

import numpy as np
import pytest

from alignment.data.sequences import chained, chosen, column

LOW, HIGH = [3, 2**62 + 1], [2**64 - 1, 2**63 + 3]


@pytest.mark.parametrize("parts", [[LOW, HIGH], [[*LOW, *HIGH]], [[LOW[0]], [LOW[1], *HIGH]]])
def test_hashes_on_both_sides_of_the_signed_integers_stay_what_they_are(parts: list[list[int]]) -> None:
    """numpy makes float64 of them where it is not told, and 2**62 + 1 is none."""
    rows = chained([chosen(tuple(part), np.arange(len(part))) for part in parts])
    assert column(rows, "hash", int, np.uint64).tolist() == LOW + HIGH
    assert column(LOW + HIGH, "hash", int, np.uint64).tolist() == LOW + HIGH

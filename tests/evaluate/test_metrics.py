"""Each figure by hand, and the intervals by what they promise: 95% coverage."""

import math

import numpy as np
import pytest

from alignment.evaluate.metrics import (
    Interval,
    accuracy_by_margin,
    calibration,
    confidence_interval,
    distinct_n,
    pair_accuracy,
    paired_difference,
    perplexity_difference,
    proportion,
    win_rate,
)


def test_constant_values_have_no_spread():
    interval = confidence_interval([0.25] * 30)
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.25, 0.25, 0.25, 30)


def test_two_values_have_three_possible_resample_means():
    # Means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: both 2.5% tails lie inside the outer masses.
    assert confidence_interval([0.0, 1.0]) == Interval(0.5, 0.0, 1.0, 2)


def test_half_width_is_close_to_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = confidence_interval(values.tolist())
    normal_half_width = 1.96 * values.std() / math.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(normal_half_width, rel=0.04)


def test_interval_covers_the_truth_about_95_times_in_100():
    samples = np.random.default_rng(1).normal(0.7, 1.0, (300, 50))
    intervals = [confidence_interval(sample.tolist()) for sample in samples]
    coverage = np.mean([interval.low <= 0.7 <= interval.high for interval in intervals])
    assert 0.91 <= coverage <= 0.98


def test_equal_input_gives_the_equal_interval_and_leaves_the_global_generator_alone():
    values = np.random.default_rng(2).normal(size=80).tolist()
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    assert confidence_interval(values) == confidence_interval(values)
    assert np.random.get_state()[1].tolist() == before


def test_many_prompts_are_resampled_in_chunks():
    values = np.random.default_rng(4).normal(size=3000)  # 30 million draws
    interval = confidence_interval(values.tolist())
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(3000), rel=0.04)


@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0], "at least 2 values, got 1"), ([], "non-empty"), ([1.0, math.nan, 2.0], "finite, got nan at position 1")],
)
def test_values_without_an_interval_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        confidence_interval(values)


def test_pairing_removes_the_spread_that_two_methods_share():
    rng = np.random.default_rng(5)
    difficulty = rng.normal(0, 5, 200)
    better, worse = difficulty + 0.3 + rng.normal(0, 0.1, 200), difficulty + rng.normal(0, 0.1, 200)
    paired = paired_difference(better.tolist(), worse.tolist())
    unpaired = paired_difference(better.tolist(), rng.permutation(worse).tolist())
    assert paired.mean == pytest.approx(unpaired.mean) == pytest.approx(better.mean() - worse.mean())
    assert paired.excludes_zero
    assert paired.low > 0
    assert not unpaired.excludes_zero
    assert (unpaired.high - unpaired.low) > 20 * (paired.high - paired.low)


def test_difference_has_the_sign_of_values_minus_baseline():
    assert paired_difference([3.0, 5.0], [1.0, 3.0]) == Interval(2.0, 2.0, 2.0, 2)
    assert paired_difference([1.0, 3.0], [3.0, 5.0]).excludes_zero


def test_difference_refuses_lists_of_different_length():
    with pytest.raises(ValueError, match="values 2, baseline 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_excludes_zero_only_where_both_ends_are_on_one_side():
    assert Interval(1, 0.1, 2, 9).excludes_zero
    assert Interval(-1, -2, -0.1, 9).excludes_zero
    assert not Interval(1, -0.1, 2, 9).excludes_zero
    assert not Interval(1, 0, 2, 9).excludes_zero


def test_wilson_interval_against_published_values():
    # 81 of 263: Newcombe (1998), table I, score method without continuity correction.
    interval = proportion(81, 263)
    assert (interval.low, interval.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_certain_proportions_keep_an_interval():
    # z^2 / (n + z^2) = 3.8415 / 13.8415 for 0 of 10
    assert proportion(0, 10).high == pytest.approx(3.8415 / 13.8415, abs=1e-4)
    assert proportion(10, 10).low == pytest.approx(10 / 13.8415, abs=1e-4)
    assert (proportion(0, 10).low, proportion(10, 10).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 out of 2"):
        proportion(3, 2)


def test_win_rate_counts_a_tie_as_half():
    assert win_rate([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 1.0]).mean == (1 + 0.5 + 0 + 1) / 4


def test_accuracy_does_not_count_a_tie():
    assert pair_accuracy([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 1.0]).mean == 2 / 4


def test_accuracy_by_rating_has_one_bucket_per_rating():
    rows = accuracy_by_margin([2.0, 0.0, 3.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 3.0, 3.0, 1.0])
    assert [(row.low, row.high, row.accuracy.mean, row.accuracy.n) for row in rows] == [
        (0.0, 0.0, 0.5, 2),
        (1.0, 1.0, 0.0, 1),
        (3.0, 3.0, 1.0, 2),
    ]


def test_accuracy_by_fine_margin_is_cut_at_its_quantiles():
    # Margins 1..8 in 2 buckets; the model is right on exactly those above 5.
    margins = [float(margin) for margin in (8, 1, 6, 3, 5, 2, 7, 4)]
    rows = accuracy_by_margin([margin - 5 for margin in margins], [0.0] * 8, margins, num_buckets=2)
    assert [(row.low, row.high, row.accuracy.mean, row.accuracy.n) for row in rows] == [
        (1.0, 4.0, 0.0, 4),
        (5.0, 8.0, 0.75, 4),
    ]


def test_calibration_by_hand():
    log3, log9 = math.log(3), math.log(9)  # sigmoid: 0.75 and 0.9
    rows = calibration([log3, 0.0, log9, 5.0, 2.0], [0.0, log3, 0.0, 5.0, 2.0], num_bins=4)
    # Bins of 0.125 from 0.5: two ties in the first, one right and one wrong at 0.75, one right at 0.9.
    assert [row.predicted for row in rows] == pytest.approx([0.5, 0.75, 0.9])
    assert [row.observed.mean for row in rows] == [0.5, 0.5, 1.0]
    assert [row.observed.n for row in rows] == [2, 2, 1]


def test_calibration_of_pairs_drawn_from_the_model_itself_is_on_the_diagonal():
    rng = np.random.default_rng(6)
    gap = rng.normal(0, 2, 40_000)
    is_first_chosen = rng.random(40_000) < 1 / (1 + np.exp(-gap))
    rows = calibration(np.where(is_first_chosen, gap, -gap).tolist(), [0.0] * 40_000)
    assert len(rows) == 10
    assert [row.observed.mean for row in rows] == pytest.approx([row.predicted for row in rows], abs=0.03)


def test_calibration_stays_finite_at_extreme_scores():
    (row,) = calibration([1e6, -1e6], [-1e6, 1e6])
    assert (row.predicted, row.observed.mean) == (1.0, 0.5)


def test_distinct_n_by_hand():
    # Bigrams: (a b) (b a) (a b) and (a b): 2 distinct of 4. None spans two replies.
    assert distinct_n(["a b a b", "a  b"]) == 2 / 4
    assert distinct_n(["a b a b", "a  b"], n=1) == 2 / 6
    assert distinct_n(["one", ""]) is None
    with pytest.raises(ValueError, match="n must be >= 1"):
        distinct_n(["a"], n=0)


def test_a_difference_in_perplexity_is_paired_by_row() -> None:
    nll, base, tokens = [2.0, 6.0, 1.0], [1.0, 6.0, 3.0], [2, 3, 1]
    found = perplexity_difference(nll, base, tokens)
    assert found.mean == pytest.approx(math.exp(9 / 6) - math.exp(10 / 6)) and found.n == 3
    assert found.low < found.mean < found.high
    same = perplexity_difference(nll, nll, tokens)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    alike = perplexity_difference([4.0, 6.0], [2.0, 3.0], [2, 3])  # of rows that agree there is no doubt
    assert alike.low == pytest.approx(alike.high) == pytest.approx(math.exp(2) - math.exp(1))
    with pytest.raises(ValueError, match="lengths must be equal"):
        perplexity_difference(nll, base, [1, 2])

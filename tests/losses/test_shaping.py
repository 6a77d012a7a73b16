"""What becomes of scores, by hand."""

import math

import pytest
import torch

from alignment.losses import (
    choose_safety_or_helpfulness,
    clip_scores,
    normalize_scores,
    subtract_length_penalty,
    subtract_missing_eos_penalty,
)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_normalized_by_hand():
    # (5 - 1) / 2 = 2, (0 - 1) / 2 = -1/2
    assert normalize_scores(f64(5.0, 0.0), mean=1.0, std=2.0).tolist() == [2.0, -0.5]


@pytest.mark.parametrize(("mean", "std"), [(math.nan, 1.0), (math.inf, 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, math.nan)])
def test_normalized_refuses_what_is_no_deviation(mean, std):
    with pytest.raises(ValueError, match=r"^(mean must be finite|std must be > 0 and finite), got"):
        normalize_scores(f64(1.0), mean=mean, std=std)


def test_safety_decides_where_tagged_or_low_by_hand():
    # R_s = 0.9, 0.9, 0.14, 0.16: safety decides the 2nd (tagged) and the 3rd (0.14 < 0.15), helpfulness the others.
    safety = f64(*(logit(p) for p in (0.9, 0.9, 0.14, 0.16)))
    helpfulness = f64(*(logit(p) for p in (0.3, 0.4, 0.5, 0.6)))
    tagged = torch.tensor([False, True, False, False])
    chosen = choose_safety_or_helpfulness(helpfulness, safety, tagged, threshold=0.15)
    assert chosen.sigmoid().tolist() == pytest.approx([0.3, 0.9, 0.14, 0.6], rel=1e-12)
    # the paper's LOGIT(R_c) is the score itself, also where the sigmoid is 0 or 1 in floating point
    assert chosen.tolist() == [helpfulness[0], safety[1], safety[2], helpfulness[3]]
    extremes = choose_safety_or_helpfulness(f64(1e3, 1e3), f64(1e3, -1e3), torch.tensor([False, False]), threshold=0.15)
    assert extremes.tolist() == [1e3, -1e3]


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 2.0), (0.49, 2.0), (0.5, 2.0), (0.51, 0.0), (1.0, 0.0)])
def test_the_threshold_is_a_probability_and_not_reached_is_below_it(threshold, expected):
    no_tag = torch.tensor([False])
    assert choose_safety_or_helpfulness(f64(2.0), f64(0.0), no_tag, threshold=threshold).tolist() == [expected]


def test_safety_refuses_other_shapes_and_thresholds():
    two, flags = f64(1.0, 2.0), torch.tensor([True, False])
    with pytest.raises(ValueError, match=r"safety must have the shape of helpfulness, got \[1\] against \[2\]"):
        choose_safety_or_helpfulness(two, two[:1], flags, threshold=0.15)
    with pytest.raises(ValueError, match=r"is_safety must have the shape of helpfulness, got \[1\] against \[2\]"):
        choose_safety_or_helpfulness(two, two, flags[:1], threshold=0.15)
    with pytest.raises(ValueError, match=r"mask must be torch.bool"):
        choose_safety_or_helpfulness(two, two, flags.long(), threshold=0.15)
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 15"):
        choose_safety_or_helpfulness(two, two, flags, threshold=15)


def test_clipped_both_ways():
    assert clip_scores(f64(-7.0, -2.0, 1.0, 9.0), limit=3.0).tolist() == [-3.0, -2.0, 1.0, 3.0]
    with pytest.raises(ValueError, match=r"limit must be > 0, got 0"):
        clip_scores(f64(1.0), limit=0)


def test_missing_eos_is_taken_off_once():
    finished = torch.tensor([[True, False], [False, True]])
    scores = subtract_missing_eos_penalty(f64(1.0, 2.0, 3.0, 4.0).view(2, 2), finished, penalty=0.5)
    assert scores.tolist() == [[1.0, 1.5], [2.5, 4.0]]
    with pytest.raises(ValueError, match="penalty must be >= 0 and finite, got -1"):
        subtract_missing_eos_penalty(scores, finished, penalty=-1)
    with pytest.raises(ValueError, match=r"finished must have the shape of scores, got \[2\] against \[2, 2\]"):
        subtract_missing_eos_penalty(scores, finished[0], penalty=1)


def test_length_by_hand():
    # free 10, 0.25 a token: 10 tokens cost nothing, 11 cost 0.25, 14 cost 1.
    lengths = torch.tensor([3, 10, 11, 14])
    assert subtract_length_penalty(f64(1.0, 1.0, 1.0, 1.0), lengths, penalty=0.25, free=10).tolist() == [
        1.0,
        1.0,
        0.75,
        0.0,
    ]
    assert subtract_length_penalty(f64(0.0, 0.0), lengths[:2], penalty=0.5, free=0).tolist() == [-1.5, -5.0]


def test_length_is_the_soft_overlong_punishment():
    # DAPO with L_max = 20 and L_cache = 5: 0 up to 15, ((20 - 5) - length) / 5 up to 20.
    lengths = torch.arange(12, 21)
    expected = [0.0 if length <= 15 else ((20 - 5) - length) / 5 for length in lengths.tolist()]
    zeros = torch.zeros(len(lengths), dtype=torch.float64)
    assert subtract_length_penalty(zeros, lengths, penalty=1 / 5, free=15).tolist() == pytest.approx(expected)


def test_length_errors():
    with pytest.raises(ValueError, match="penalty must be >= 0 and finite, got inf"):
        subtract_length_penalty(f64(1.0), torch.tensor([1]), penalty=math.inf, free=0)
    with pytest.raises(ValueError, match="free must be >= 0, got -1"):
        subtract_length_penalty(f64(1.0), torch.tensor([1]), penalty=1.0, free=-1)
    with pytest.raises(ValueError, match=r"lengths must have the shape of scores, got \[1, 1\] against \[1\]"):
        subtract_length_penalty(f64(1.0), torch.tensor([[1]]), penalty=1.0, free=0)

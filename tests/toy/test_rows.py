"""The rows: pure functions of (n, seed, split), held-out questions held out, ratings by the gold difference."""

from statistics import mean

import pytest

from alignment.toy import ToyError, demonstrations, gold, pairs, prompts
from alignment.toy.language import parse_question
from alignment.toy.rows import RATINGS, rating_of

MAKERS = (demonstrations, pairs, prompts)


def score(rows: list[dict[str, str]], key: str) -> list[float]:
    return gold([[{"role": "user", "content": row["prompt"]}] for row in rows], [row[key] for row in rows])


@pytest.mark.parametrize("make", MAKERS)
def test_rows_are_a_pure_function_of_n_seed_and_split(make) -> None:
    assert make(50, 3, "train") == make(50, 3, "train")
    assert make(50, 3, "train") == make(80, 3, "train")[:50]
    assert make(50, 3, "train") != make(50, 4, "train")
    assert make(0, 3, "eval") == []


def test_rows_do_not_change_between_versions_of_python() -> None:
    assert demonstrations(1, 0, "train") == [FIRST_DEMONSTRATION]


@pytest.mark.parametrize("make", MAKERS)
def test_no_question_is_in_both_splits(make) -> None:
    def asked(split: str, seed: int) -> set[tuple[str, ...]]:
        questions = [parse_question(row["prompt"]) for row in make(2000, seed, split)]
        return {(*sorted(question.adjectives), question.animal) for question in questions}

    train, held_out = asked("train", 0) | asked("train", 1), asked("eval", 0) | asked("eval", 1)
    assert not train & held_out
    assert len(train) > 1000
    assert len(held_out) > 200


def test_eval_prompts_are_distinct_and_limited() -> None:
    rows = prompts(2256, 0, "eval")
    assert len({row["prompt"] for row in rows}) == 2256
    with pytest.raises(ToyError, match="eval split has 2256 prompts, got n = 2257"):
        prompts(2257, 0, "eval")


def test_train_repeats_prompts_with_other_replies() -> None:
    rows = demonstrations(25_000, 0, "train")
    assert len({row["prompt"] for row in rows}) < 11_000
    assert len({(row["prompt"], row["completion"]) for row in rows}) > 20_000


def test_demonstrations_are_of_mixed_quality() -> None:
    scores = score(demonstrations(4000, 0, "train"), "completion")
    assert mean(scores) == pytest.approx(0.555, abs=0.03)
    assert all(any(low <= s < low + 0.2 for s in scores) for low in (0, 0.2, 0.4, 0.6, 0.8))
    assert max(scores) == 1


def test_pairs_hold_every_rating_and_two_different_texts() -> None:
    rows = pairs(2000, 0, "train")
    assert all(row["chosen"] != row["rejected"] for row in rows)
    share = {rating: mean(row["rating"] == rating for row in rows) for rating, _ in RATINGS}
    assert sum(share.values()) == pytest.approx(1)
    assert min(share.values()) > 0.1


def test_ratings_follow_the_gold_difference_and_only_negligible_pairs_are_noisy() -> None:
    rows = pairs(2000, 0, "train")
    differences = [c - r for c, r in zip(score(rows, "chosen"), score(rows, "rejected"), strict=True)]
    assert [rating_of(abs(difference)) for difference in differences] == [row["rating"] for row in rows]
    flipped = [difference < 0 for difference, row in zip(differences, rows, strict=True)]
    negligible = [row["rating"] == "negligibly_better" for row in rows]
    assert not any(flip and not near for flip, near in zip(flipped, negligible, strict=True))
    untied = [flip for flip, difference in zip(flipped, differences, strict=True) if 0 < abs(difference) < 0.12]
    assert 0.12 < mean(untied) < 0.28


@pytest.mark.parametrize(
    ("twelfths", "rating"),
    [
        (0, "negligibly_better"),
        (1, "negligibly_better"),
        (2, "slightly_better"),
        (3, "slightly_better"),
        (4, "better"),
        (5, "better"),
        (6, "significantly_better"),
        (12, "significantly_better"),
    ],
)
def test_rating_cut_points(twelfths: int, rating: str) -> None:
    assert rating_of(twelfths / 12) == rating


def test_what_the_generator_refuses() -> None:
    with pytest.raises(ToyError, match="split must be one of train, eval, got 'test'"):
        prompts(1, 0, "test")
    with pytest.raises(ToyError, match="at most 10,000,000 rows of a split"):
        pairs(10**20, 0, "train")
    with pytest.raises(ToyError, match="n must be >= 0, got -1"):
        pairs(-1, 0, "train")


FIRST_DEMONSTRATION = {
    "prompt": "please tell me about the big small rabbit .",
    "completion": "the very very big small deer swims in the river or so they say they say .",
}

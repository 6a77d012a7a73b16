import math
import re
from pathlib import Path
from typing import Any

import pytest

from alignment.config.errors import ConfigError
from alignment.config.margin import MarginConfig, MarginScale
from alignment.data.margins import margin_from
from alignment.data.read import read_rows
from alignment.data.records import DataError, GradeError, Source

AT = Source("pairs.jsonl", 3)
LARGE = {"significantly_better": 3, "better": 2, "slightly_better": 1, "negligibly_better": 0, "unsure": 0}


@pytest.mark.parametrize("rating", LARGE)
def test_the_two_scales_of_llama_2(rating: str) -> None:
    row = {"rating": rating}
    assert margin_from(row, AT, scale=MarginScale.large) == LARGE[rating]
    assert margin_from(row, AT, scale=MarginScale.small) == pytest.approx(LARGE[rating] / 3, abs=1e-15)


@pytest.mark.parametrize(
    ("rating", "margin"),
    [
        ("Significantly Better", 3.0),
        (" slightly-better ", 1.0),
        ("SLIGHTLY  BETTER", 1.0),
        ("negligibly_better / unsure", 0.0),
        ("Negligibly Better/Unsure", 0.0),
    ],
)
def test_ratings_as_people_write_them(rating: str, margin: float) -> None:
    assert margin_from({"rating": rating}, AT, scale=MarginScale.large) == margin


def test_no_scale_reads_nothing() -> None:
    assert margin_from({"rating": "nonsense", "margin": "x"}, AT, scale=MarginScale.none) is None


def test_a_map_of_ones_own() -> None:
    custom = {"Much better": 2.5, "so-so / unsure": 0.25, "4": 4}
    rows = [{"rating": "much_better"}, {"rating": "so so"}, {"rating": "unsure"}, {"rating": 4}]
    margins = [margin_from(row, AT, scale=MarginScale.custom, custom=custom) for row in rows]
    assert margins == [2.5, 0.25, 0.25, 4.0]


def test_columns_of_other_names() -> None:
    row = {"score_chosen": 8.5, "score_rejected": 7.0, "gap": 2, "grade": "better", "rating": "unsure"}
    scores = {"chosen_column": "score_chosen", "rejected_column": "score_rejected"}
    assert margin_from(row, AT, scale=MarginScale.score, **scores) == 1.5
    assert margin_from(row, AT, scale=MarginScale.given, column="gap") == 2.0
    assert margin_from(row, AT, scale=MarginScale.large, column="grade") == 2.0
    with pytest.raises(GradeError, match="but field `score_chosen` is missing"):
        margin_from({"chosen_score": 1}, AT, scale=MarginScale.score, **scores)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (
            {"scale": MarginScale.large, "chosen_column": "x"},
            "data.margin.chosen_column goes with data.margin.scale=score",
        ),
        ({"rejected_column": "x"}, "data.margin.rejected_column goes with data.margin.scale=score"),
        ({"scale": MarginScale.score, "column": "x"}, "data.margin.column goes with a data.margin.scale that reads a "),
        ({"scale": MarginScale.custom, "custom": {"a": math.inf}}, "data.margin.custom must map to margins in "),
        ({"scale": MarginScale.custom, "custom": {"a": math.nan}}, "data.margin.custom must map to margins in "),
    ],
)
def test_a_name_that_would_not_be_read_is_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(what)}"):
        MarginConfig(**settings)


def test_numbers_of_the_row() -> None:
    assert margin_from({"chosen_score": 8.5, "rejected_score": 6}, AT, scale=MarginScale.score) == 2.5
    assert margin_from({"margin": 0}, AT, scale=MarginScale.given) == 0.0


@pytest.mark.parametrize(
    ("scale", "row", "what"),
    [
        (
            MarginScale.large,
            {"prompt": "q", "how_much": "better"},
            "a margin was asked for, but field `rating` is missing; data.margin.column=COLUMN names another, "
            "data.margin.scale=none takes pairs without margins; the row has `prompt`, `how_much`",
        ),
        (MarginScale.small, {"rating": None}, "a margin was asked for, but field `rating` is missing"),
        (MarginScale.given, {"rating": "better"}, "a margin was asked for, but field `margin` is missing"),
        (
            MarginScale.score,
            {"chosen_score": 1},
            "a margin was asked for, but field `rejected_score` is missing; data.margin.rejected_column=COLUMN names",
        ),
        (
            MarginScale.large,
            {"rating": "best"},
            "rating must be one of significantly_better, better, slightly_better, ",
        ),
        (MarginScale.large, {"rating": "better / unsure"}, "rating must be one of "),
        (MarginScale.large, {"rating": "better/best"}, "rating must be one of "),
        (MarginScale.large, {"rating": ""}, "rating must be one of "),
        (MarginScale.given, {"margin": "2"}, "margin must be a finite number, got '2', a text: a number has no"),
        (MarginScale.given, {"margin": True}, "margin must be a finite number, got True"),
        (MarginScale.given, {"margin": float("nan")}, "margin must be a finite number, got nan"),
        (MarginScale.given, {"margin": 10**400}, "margin must be a finite number, got an integer beyond any of them"),
        (MarginScale.given, {"margin": 1e308}, "a margin must be <= 10000, in the units of a reward, got 1e+308"),
        (MarginScale.given, {"margin": -0.5}, "the margin of a chosen reply must be >= 0, got -0.5"),
        (
            MarginScale.score,
            {"chosen_score": 1, "rejected_score": 3},
            "the margin of a chosen reply must be >= 0, got -2",
        ),
    ],
)
def test_a_margin_is_never_filled_in(scale: MarginScale, row: dict[str, object], what: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"pairs.jsonl:3: {what}")):
        margin_from(row, AT, scale=scale)


@pytest.mark.parametrize(("scale", "custom"), [(MarginScale.custom, {}), (MarginScale.large, {"better": 1.0})])
def test_a_map_goes_with_its_scale(scale: MarginScale, custom: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^a map of ratings goes with the margin scale custom, got "):
        margin_from({"rating": "better"}, AT, scale=scale, custom=custom)


def test_real_ratings(shared: Path) -> None:
    counts = dict.fromkeys((3.0, 2.0, 1.0, 0.0), 0)
    for source, row in read_rows(shared / "data" / "alpaca_eval_graded.test.jsonl.gz"):
        margin = margin_from(row, source, scale=MarginScale.large)
        assert margin is not None
        counts[margin] += 1
    assert counts == {3.0: 109, 2.0: 72, 1.0: 80, 0.0: 54}


@pytest.mark.parametrize("rating", [1, 1.0, "1", " 1 "])
def test_ratings_that_are_numbers(rating: object) -> None:
    custom = MarginConfig(scale=MarginScale.custom, custom={1: 0.5, 2.5: 2, "3": 3}).custom
    assert margin_from({"rating": rating}, AT, scale=MarginScale.custom, custom=custom) == 0.5
    with pytest.raises(GradeError, match=r"rating must be one of 1, 2\.5, 3, got '4'"):
        margin_from({"rating": 4}, AT, scale=MarginScale.custom, custom=custom)

"""How much better a chosen reply is, and how good a single one: the one place where a rating becomes a number."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignment.config.margin import MAX_MARGIN, MarginScale, spelled
from alignment.data.records import Cell, GradeError, Source

LEVELS = ("significantly_better", "better", "slightly_better", "negligibly_better", "unsure")
COLUMN = "data.margin.column"  # of a rating or a margin
TEXT = ", a text: a number has no quotes in JSON"
FEW_MARGINS = 6  # that differ
SHOWN = 12  # names of a row's fields
# Llama 2 (Touvron et al. 2307.09288), table 27; its fourth level is "negligibly better / unsure".
SCALES: dict[MarginScale, dict[str, float]] = {
    MarginScale.large: dict(zip(LEVELS, (3.0, 2.0, 1.0, 0.0, 0.0), strict=True)),
    MarginScale.small: dict(zip(LEVELS, (1.0, 2 / 3, 1 / 3, 0.0, 0.0), strict=True)),
}


def margin_words(margins: np.ndarray, scale: MarginScale) -> str:
    """How many pairs have which margin, of few that differ; else their range. NaN: a pair without one."""
    names: dict[float, str] = {}
    for level, margin in SCALES.get(scale, {}).items():
        names[margin] = f"{names[margin]} or {level}" if margin in names else level
    values, counts = np.unique(margins[~np.isnan(margins)], return_counts=True)
    if not len(values):
        return "none"
    if len(values) > FEW_MARGINS:
        low, middle, high = np.quantile(np.repeat(values, counts), [0, 0.5, 1])
        return f"{low:.3g} to {high:.3g}, median {middle:.3g}"
    counted = zip(values.tolist(), counts.tolist(), strict=True)
    return ", ".join(f"{value:.3g} ({_of(names.get(value))}{count}x)" for value, count in counted)


def _of(level: str | None) -> str:
    return "" if level is None else f"{level.replace('_', ' ')}, "


def margin_from(
    row: Mapping[str, Any],
    source: Source,
    *,
    scale: MarginScale,
    custom: Mapping[str, float] | None = None,
    column: str | None = None,
    chosen_column: str = "chosen_score",
    rejected_column: str = "rejected_score",
) -> float | None:
    """The margin of a pair, m(r) in equation 2 of Llama 2; None exactly for `MarginScale.none`.

    Args:
        row: carries `rating` for small, large and custom; `chosen_score` and `rejected_score` for score; `margin`
            for given. Ratings are compared without regard to capitals, spaces, hyphens and underscores, and
            "negligibly_better / unsure" counts as each of its halves, which must agree.
        custom: rating -> margin, for `MarginScale.custom` and for no other.
        column: another name of `rating`, or of `margin` for given.
        chosen_column, rejected_column: other names of the scores.

    Raises:
        GradeError: what the scale asks for is missing, unknown, not a finite number, negative, or too large for
            rewards in float32 to make a difference. A margin is never filled in.
        ValueError: `custom` is missing, or given to another scale.
    """
    if bool(custom) != (scale is MarginScale.custom):
        raise ValueError(f"a map of ratings goes with the margin scale custom, got {custom!r} with {scale.value}")
    match scale:
        case MarginScale.none:
            return None
        case MarginScale.given:
            margin = finite(row, column or "margin", source)
        case MarginScale.score:
            keys = ((chosen_column, "data.margin.chosen_column"), (rejected_column, "data.margin.rejected_column"))
            chosen, rejected = (finite(row, column, source, named_by=key) for column, key in keys)
            margin = chosen - rejected
        case _:
            margin = _from_rating(row, column or "rating", source, custom or SCALES[scale])
    if margin < 0:
        raise GradeError(source, f"the margin of a chosen reply must be >= 0, got {margin:g}")
    if margin > MAX_MARGIN:
        raise GradeError(source, f"a margin must be <= {MAX_MARGIN:g}, in the units of a reward, got {margin:g}")
    return margin


def score_from(row: Mapping[str, Any], source: Source, columns: Mapping[str, float]) -> float:
    """The score of a reply: the weighted sum of the row's `columns`, or where none are named its `score`.

    Raises:
        GradeError: one is missing or no finite number, or the sum is too large for rewards in float32 to make a
            difference; a score is never filled in.
    """
    score = sum(weight * finite(row, key, source, "score") for key, weight in (columns or {"score": 1.0}).items())
    if not abs(score) <= MAX_MARGIN:
        rule = f"a score must be between -{MAX_MARGIN:g} and {MAX_MARGIN:g}, in the units of a reward"
        raise GradeError(source, f"{rule}, got {score:g}")
    return score


def _from_rating(row: Mapping[str, Any], key: str, source: Source, scale: Mapping[str, float]) -> float:
    rating = spelled(_present(row, key, source, "margin", COLUMN))
    margins = {level: margin for name, margin in scale.items() for level in _levels(name)}
    named = {margins.get(level) for level in _levels(rating)}
    margin = named.pop()
    if named or margin is None:
        ways = "data.margin.scale=custom has ratings of your own, given takes numbers as margins"
        raise GradeError(source, f"{key} must be one of {', '.join(scale)}, got {rating!r}; {ways}")
    return float(margin)


def _levels(rating: str) -> list[str]:
    """The spelling of LEVELS; a rating may name two at once, "negligibly better / unsure"."""
    return ["_".join(re.split(r"[\s_-]+", part.strip().lower())) for part in rating.split("/")]


def finite(row: Mapping[str, Any], key: str, source: Source, what: str = "margin", named_by: str = COLUMN) -> float:
    """A number of the row, that a table of texts may have as a text.

    Args:
        named_by: the key of the config that says which column a margin comes from.

    Raises:
        GradeError: it is missing, or no finite number.
    """
    value = _present(row, key, source, what, named_by)
    is_text = isinstance(value, str) and not isinstance(value, Cell)
    value = value.number() if isinstance(value, Cell) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GradeError(source, f"{key} must be a finite number, got {value!r}{TEXT * is_text}")
    try:
        number = float(value)
    except OverflowError as error:
        raise GradeError(source, f"{key} must be a finite number, got an integer beyond any of them") from error
    if not math.isfinite(number):
        raise GradeError(source, f"{key} must be a finite number, got {value!r}")
    return number


def _present(row: Mapping[str, Any], key: str, source: Source, what: str, named_by: str) -> Any:
    if row.get(key) is None:
        there = ", ".join(f"`{name}`" for name in list(row)[:SHOWN])
        ways = f"{named_by}=COLUMN names another, data.margin.scale=none takes pairs without margins"
        way = f"; {ways}; the row has {there}" if what == "margin" else ""
        raise GradeError(source, f"a {what} was asked for, but field `{key}` is missing{way}")
    return row[key]

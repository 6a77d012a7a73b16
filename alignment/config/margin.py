"""Where the margins of pairs come from."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from alignment.config.base import Config
from alignment.config.errors import require

MAX_MARGIN = 1e4  # where float32 still tells rewards a thousandth apart


def spelled(rating: object) -> str:
    """A rating as it is compared: 1, 1.0 and "1" are one."""
    is_number = isinstance(rating, int | float) and not isinstance(rating, bool)
    return f"{rating:g}" if is_number else str(rating)


class MarginScale(str, Enum):
    """Where the margin of a pair comes from."""

    none = "none"
    """Nowhere: the pairs carry no margin."""
    small = "small"
    """The row's rating: 1, 2/3, 1/3, 0 (Llama 2, arXiv:2307.09288, table 27)."""
    large = "large"
    """The row's rating: 3, 2, 1, 0 (same table)."""
    custom = "custom"
    """The row's rating, through the user's own map."""
    score = "score"
    """chosen_score - rejected_score."""
    given = "given"
    """The row's own margin, as it is."""


@dataclass(slots=True)
class MarginConfig(Config):
    scale: MarginScale = MarginScale.none
    """Where a pair's margin comes from: nowhere, a rating on one of Llama 2's scales, a score difference, the row."""
    custom: dict[Any, float] = field(default_factory=dict)
    """rating -> margin, for `scale: custom`."""
    column: str | None = None
    """What the row calls its rating, or its margin for `scale: given`. Null: rating, or margin."""
    chosen_column: str = "chosen_score"
    """What the row calls the chosen reply's score, for `scale: score`; UltraFeedback calls it score_chosen."""
    rejected_column: str = "rejected_score"
    """The same of the rejected reply's."""

    def __post_init__(self) -> None:
        self.custom = {spelled(rating): margin for rating, margin in self.custom.items()}
        is_custom = self.scale is MarginScale.custom
        require(is_custom or not self.custom, "data.margin.custom goes with data.margin.scale=custom", self.custom)
        rule = "data.margin.scale=custom needs a margin for each rating, as 'data.margin.custom={good: 1, fair: 0.5}'"
        require(bool(self.custom) or not is_custom, rule, self.custom)
        rule = f"data.margin.custom must map to margins in [0, {MAX_MARGIN:g}]"
        require(all(0 <= margin <= MAX_MARGIN for margin in self.custom.values()), rule, self.custom)
        is_score, names_one = self.scale is MarginScale.score, self.scale not in (MarginScale.none, MarginScale.score)
        rule = "data.margin.column goes with a data.margin.scale that reads a rating or a margin"
        require(self.column is None or names_one, rule, self.column)
        for key, value, default in (
            ("chosen_column", self.chosen_column, "chosen_score"),
            ("rejected_column", self.rejected_column, "rejected_score"),
        ):
            require(is_score or value == default, f"data.margin.{key} goes with data.margin.scale=score", value)

"""The columns of a comparison, for a terminal and for the report."""

import math
from dataclasses import dataclass

from alignment.evaluate.comparison import MethodRow, deciding_score
from alignment.evaluate.metrics import Interval
from alignment.evaluate.results import Evaluation

MORE = 2  # decimals, where an end of an interval would read as zero with fewer; smaller ones are written as powers


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: its heading, its unit, one cell per method."""

    title: str
    unit: str
    short: str
    """The heading in a terminal, two short lines."""
    cells: list[Interval | float | None]
    scale: float = 1.0
    is_difference: bool = False
    words: str = ""
    """What a terminal says of it behind the table."""
    is_score: bool = False
    """What methods are judged by: shown with its interval even where there is little room."""

    def texts(self) -> list[tuple[str, str]]:
        """(figure, interval) of each cell, all to the same number of decimals: so many that no end of an interval reads
        as zero that is not."""
        places = self._decimals()
        return [self._text(cell, places) for cell in self.cells]

    def _text(self, cell: Interval | float | None, places: int) -> tuple[str, str]:
        sign = "+" if self.is_difference else ""
        if cell is None:
            return "–", ""
        if not isinstance(cell, Interval):
            return f"{cell * self.scale:{sign}.{places}f}", ""
        mean = f"{cell.mean * self.scale + 0.0:{sign}.{places}f}"
        ends = (value * self.scale + 0.0 for value in (cell.low, cell.high))  # + 0.0: no minus before an exact zero
        low, high = (f"{end:{sign}{'.0e' if _vanishes(end, places) else f'.{places}f'}}" for end in ends)
        return mean, f"[{low}, {high}]"

    def _decimals(self) -> int:
        places = self._typical_decimals()
        ends = [end * self.scale for c in self.cells if isinstance(c, Interval) for end in (c.low, c.high)]
        enough = (more for more in range(places, places + MORE) if not any(_vanishes(end, more) for end in ends))
        return next(enough, places + MORE)

    def _typical_decimals(self) -> int:
        """As many as give the typical half-width two significant digits: more would be noise."""
        halves = sorted(
            (c.high - c.low) / 2 * self.scale for c in self.cells if isinstance(c, Interval) and c.low < c.high
        )
        if not halves:
            return 1 if self.scale > 1 else 2
        return min(4, max(0, 1 - math.floor(math.log10(halves[len(halves) // 2]))))


def columns(evaluation: Evaluation, rows: list[MethodRow]) -> list[Column]:
    """The columns of replies that have anything to show."""
    score, base = deciding_score(evaluation), evaluation.baseline
    by_gold = score == "gold score"
    every = [
        Column("Gold score", "mean", "gold\nscore", [row.gold for row in rows], is_score=True),
        Column(
            "Learned reward",
            "mean",
            "learned\nreward",
            [row.reward for row in rows],
            words="learned reward: mean score of the replies by the model of `reward`",
            is_score=True,
        ),
        Column(
            f"Difference in {score}",
            f"from {base}",
            f"{score}\n- {base}",
            [row.gold_difference if by_gold else row.reward_difference for row in rows],
            is_difference=True,
            is_score=True,
        ),
        Column(
            "Win rate",
            f"% against {base}",
            "win\n%",
            [row.win_rate for row in rows],
            scale=100,
            words=f"win: replies whose {score} is above {base}'s to the same prompt, ties half (intervals: the report)",
        ),
        Column(
            f"KL to {base}",
            "nats per reply",
            "KL\nnats",
            [row.kl if len(rows) > 1 else None for row in rows],
            words=f"KL: from {base}, nats a reply: mean of log p(reply) less {base}'s, over the model's own replies",
        ),
        Column("Reply length", "tokens", "length\ntokens", [row.length for row in rows]),
        Column(
            "Finished",
            "% of replies",
            "ended\n%",
            [row.finished for row in rows],
            scale=100,
            words="ended: replies that the model ended itself, before generation.max_new_tokens",
        ),
        Column(
            "Distinct bigrams",
            "% of all",
            "distinct\n2-grams %",
            [row.distinct_2 for row in rows],
            scale=100,
            words="distinct: different 2-grams of words, as a share of all 2-grams in the replies of a model together",
        ),
    ]
    return shown(every)


def completion_columns(evaluation: Evaluation, rows: list[MethodRow]) -> list[Column]:
    """The columns of what the models give the completions of the data; [] where there are none."""
    base = evaluation.baseline
    every = [
        Column("Perplexity", "per token", "perplexity\nper token", [row.perplexity for row in rows], is_score=True),
        Column("Log-loss", "nats per token", "nats per\ntoken", [row.nll for row in rows], is_score=True),
        Column("Bits per byte", "of text", "bits per\nbyte", [row.bits_per_byte for row in rows], is_score=True),
        Column(
            "Difference in bits per byte",
            f"from {base}",
            f"bits per byte\n- {base}",
            [row.bits_per_byte_difference for row in rows],
            is_difference=True,
            is_score=True,
        ),
    ]
    return shown(every)


def shown(columns: list[Column]) -> list[Column]:
    """Those that have anything to show."""
    return [column for column in columns if any(cell is not None for cell in column.cells)]


def _vanishes(value: float, places: int) -> bool:
    """Whether a value that is not zero would read as zero."""
    return value != 0 and float(f"{value:.{places}f}") == 0


def mark(difference: Interval) -> str:
    """Says in words whether the interval of a difference excludes 0."""
    if not difference.excludes_zero:
        return "○ includes 0"
    return "▲ above 0" if difference.low > 0 else "▼ below 0"

"""The comparison of methods: computed once, shown in the terminal, in the report and in a JSON file."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from alignment.evaluate.metrics import (
    Interval,
    accuracy_by_margin,
    calibration,
    confidence_interval,
    distinct_n,
    pair_accuracy,
    paired_difference,
    win_rate,
)
from alignment.evaluate.results import Evaluation, MethodResult, RewardModelResult


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method's figures; None where the scores behind a figure do not exist (or compare the baseline to itself)."""

    name: str
    gold: Interval | None
    gold_difference: Interval | None
    reward: Interval | None
    reward_difference: Interval | None
    kl: Interval | None
    length: Interval
    distinct_2: float | None
    win_rate: Interval | None


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
    is_score: bool = False
    """What methods are judged by: shown with its interval even where there is little room."""

    def texts(self) -> list[tuple[str, str]]:
        """(figure, interval) of each cell, all to the same number of decimals."""
        places = self._decimals()
        return [self._text(cell, places) for cell in self.cells]

    def _text(self, cell: Interval | float | None, places: int) -> tuple[str, str]:
        sign = "+" if self.is_difference else ""
        if cell is None:
            return "–", ""
        if not isinstance(cell, Interval):
            return f"{cell * self.scale:{sign}.{places}f}", ""
        mean, low, high = (f"{value * self.scale:{sign}.{places}f}" for value in (cell.mean, cell.low, cell.high))
        return mean, f"[{low}, {high}]"

    def _decimals(self) -> int:
        """As many as give the typical half-width two significant digits: more would be noise."""
        halves = sorted(
            (c.high - c.low) / 2 * self.scale for c in self.cells if isinstance(c, Interval) and c.low < c.high
        )
        if not halves:
            return 1 if self.scale > 1 else 2
        return min(4, max(0, 1 - math.floor(math.log10(halves[len(halves) // 2]))))


def compare(evaluation: Evaluation) -> list[MethodRow]:
    """The figures of every method, in the order given."""
    return [_row(method, evaluation.baseline_result) for method in evaluation.methods]


def deciding_score(evaluation: Evaluation) -> str | None:
    """The score that decides differences and wins: the gold score, else the learned reward, else nothing does."""
    if evaluation.baseline_result.gold is not None:
        return "gold score"
    return "learned reward" if evaluation.baseline_result.reward is not None else None


def columns(evaluation: Evaluation, rows: list[MethodRow]) -> list[Column]:
    """The columns that have anything to show."""
    score, base = deciding_score(evaluation), evaluation.baseline
    by_gold = score == "gold score"
    every = [
        Column("Gold score", "mean", "gold\nscore", [row.gold for row in rows], is_score=True),
        Column("Learned reward", "mean", "learned\nreward", [row.reward for row in rows], is_score=True),
        Column(
            f"Difference in {score}",
            f"from {base}",
            f"{score}\n- {base}",
            [row.gold_difference if by_gold else row.reward_difference for row in rows],
            is_difference=True,
            is_score=True,
        ),
        Column("Win rate", f"% against {base}", "win\n%", [row.win_rate for row in rows], scale=100),
        Column(f"KL to {base}", "nats per reply", "KL\nnats", [row.kl for row in rows]),
        Column("Reply length", "tokens", "length\ntokens", [row.length for row in rows]),
        Column("Distinct bigrams", "% of all", "distinct\n2-grams %", [row.distinct_2 for row in rows], scale=100),
    ]
    return [column for column in every if any(cell is not None for cell in column.cells)]


def mark(difference: Interval) -> str:
    """Says in words whether the interval of a difference excludes 0."""
    if not difference.excludes_zero:
        return "○ includes 0"
    return "▲ above 0" if difference.low > 0 else "▼ below 0"


def terminal_table(evaluation: Evaluation) -> Table:
    """The comparison in 80 columns: scores with their 95% interval beneath; the report has the others' too."""
    rows = compare(evaluation)
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=f"{len(evaluation.methods)} methods on {len(evaluation.prompts)} prompts",
        caption="[ ] 95% confidence interval over prompts",
    )
    table.add_column("Method")
    shown = columns(evaluation, rows)
    for column in shown:
        table.add_column(Text(column.short), justify="right")
    texts = [column.texts() for column in shown]
    for index, row in enumerate(rows):
        cells = [Text(row.name + ("\nbaseline" if row.name == evaluation.baseline else ""))]
        for column, text in zip(shown, texts, strict=True):
            cell, lines = column.cells[index], [part for part in text[index] if part][: 2 if column.is_score else 1]
            if column.is_difference and isinstance(cell, Interval):
                lines.append(mark(cell))
            cells.append(Text("\n".join(lines)))
        table.add_row(*cells)
    return table


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Every figure of the report as plain JSON values; a figure that does not exist has no key."""
    found: dict[str, Any] = {
        "facts": dict(evaluation.facts),
        "num_prompts": len(evaluation.prompts),
        "baseline": evaluation.baseline,
        "methods": [
            {key: value for key, value in asdict(row).items() if value is not None} for row in compare(evaluation)
        ],
    }
    if (score := deciding_score(evaluation)) is not None:
        found["wins_by"] = score
    if evaluation.reward_model is not None:
        found["reward_model"] = _reward_model_summary(evaluation.reward_model)
    return found


def _reward_model_summary(result: RewardModelResult) -> dict[str, Any]:
    scores = result.chosen_scores, result.rejected_scores
    found: dict[str, Any] = {
        "accuracy": asdict(pair_accuracy(*scores)),
        "calibration": [asdict(row) for row in calibration(*scores)],
    }
    if result.margins is not None:
        found["accuracy_by_margin"] = [asdict(row) for row in accuracy_by_margin(*scores, result.margins)]
    return found


def _row(method: MethodResult, base: MethodResult) -> MethodRow:
    other = method.name != base.name
    by_gold = base.gold is not None
    ours, theirs = (method.gold, base.gold) if by_gold else (method.reward, _where_alike(method, base))
    return MethodRow(
        name=method.name,
        gold=None if method.gold is None else confidence_interval(method.gold),
        gold_difference=_against(paired_difference, method.gold, base.gold) if other else None,
        reward=None if method.reward is None else confidence_interval(method.reward),
        reward_difference=_against(paired_difference, method.reward, base.reward) if other else None,
        kl=None if method.kl is None else confidence_interval(method.kl),
        length=confidence_interval(method.lengths),
        distinct_2=distinct_n(method.replies),
        win_rate=_against(win_rate, ours, theirs) if other else None,
    )


def _where_alike(method: MethodResult, base: MethodResult) -> list[float] | None:
    """The baseline's learned rewards, with the method's own for a reply that is the same: a tie, which the rounding of
    two batches would break."""
    if method.reward is None or base.reward is None:
        return None
    rows = zip(method.reward, base.reward, method.replies, base.replies, strict=True)
    return [mine if reply == other else theirs for mine, theirs, reply, other in rows]


def _against(
    figure: Callable[[Sequence[float], Sequence[float]], Interval], ours: list[float] | None, theirs: list[float] | None
) -> Interval | None:
    return None if ours is None or theirs is None else figure(ours, theirs)

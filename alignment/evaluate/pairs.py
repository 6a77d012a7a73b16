"""A reward model's accuracy, overall and where: by margin, by what the rows say of a pair, by difference in length."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alignment.evaluate.metrics import Interval, accuracy_by_margin, calibration, pair_accuracy
from alignment.evaluate.results import RewardModelResult
from alignment.evaluate.rewardbench import SOURCE, is_rewardbench, overall, section_scores

COLUMNS = ("rating", "source", "subset", "tags")  # of a row, whose values are groups of pairs
SUBSET = "subset"
MOST_GROUPS = 40  # a column of more values, such as addresses, tells no groups
LENGTHS = (  # by (chosen - rejected) / the longer of the two, in characters: above these
    (0.5, "chosen over twice as long"),
    (0.1, "chosen longer"),
    (-0.1, "about as long (within 10%)"),
    (-0.5, "chosen shorter"),
    (-1.0, "chosen under half as long"),
)


@dataclass(frozen=True, slots=True)
class Group:
    """The accuracy on some of the pairs."""

    name: str
    accuracy: Interval


@dataclass(frozen=True, slots=True)
class Grouping:
    """The pairs told apart by one thing that is known of them."""

    title: str
    key: str
    """In the summary."""
    groups: list[Group]


def overall_accuracy(result: RewardModelResult) -> Interval:
    return pair_accuracy(result.chosen_scores, result.rejected_scores)


def groupings(result: RewardModelResult) -> list[Grouping]:
    """By all that is known of the pairs; a column in which all agree, or next to none do, tells nothing."""
    found = [_by_margin(result), _by_length(result)]
    found += [_by_column(result, column, values) for column, values in result.columns.items()]
    return [grouping for grouping in found if grouping is not None]


def summary_of(result: RewardModelResult) -> dict[str, Any]:
    """Every figure as plain JSON values."""
    scores = result.chosen_scores, result.rejected_scores
    found: dict[str, Any] = {
        "accuracy": asdict(overall_accuracy(result)),
        "calibration": [asdict(row) for row in calibration(*scores)],
    }
    if result.margins is not None:
        found["accuracy_by_margin"] = [asdict(row) for row in accuracy_by_margin(*scores, result.margins)]
    for grouping in groupings(result):
        if grouping.key != "margin":
            found[f"accuracy_by_{grouping.key}"] = {group.name: asdict(group.accuracy) for group in grouping.groups}
    sections = rewardbench(result)
    if sections:
        found["rewardbench"] = {**sections, "source": SOURCE}
    return found


def rewardbench(result: RewardModelResult) -> dict[str, float]:
    """The score of each of RewardBench's sections, and of all of them where all are there; {} for other data."""
    values = result.columns.get(SUBSET)
    if values is None or not is_rewardbench({name for names in values for name in names}):
        return {}
    groups = _grouped(result, values)
    sections = section_scores({group.name: group.accuracy.mean for group in groups})
    scores = {section.name: section.score for section in sections}
    whole = overall(sections)
    return scores if whole is None else {**scores, "Score": whole}


def rewardbench_lacking(result: RewardModelResult) -> list[str]:
    """Subsets that a section's mean is without."""
    if not rewardbench(result):
        return []
    there = {name: 0.0 for names in result.columns[SUBSET] for name in names}
    return [name for section in section_scores(there) for name in section.lacking]


def _by_margin(result: RewardModelResult) -> Grouping | None:
    if result.margins is None:
        return None
    buckets = accuracy_by_margin(result.chosen_scores, result.rejected_scores, result.margins)
    return Grouping("Margin", "margin", [Group(_span(row.low, row.high), row.accuracy) for row in buckets])


def _by_length(result: RewardModelResult) -> Grouping | None:
    if result.lengths is None:
        return None
    names = [next(name for above, name in LENGTHS if _longer(*pair) >= above) for pair in result.lengths]
    groups = {group.name: group for group in _grouped(result, [(name,) for name in names])}
    return Grouping("Length", "length", [groups[name] for _, name in LENGTHS if name in groups])


def _longer(chosen: int, rejected: int) -> float:
    return (chosen - rejected) / max(chosen, rejected, 1)


def _by_column(result: RewardModelResult, column: str, values: Sequence[tuple[str, ...]]) -> Grouping | None:
    different = {value for several in values for value in several}
    if not 1 < len(different) <= MOST_GROUPS:
        return None
    return Grouping(column.capitalize(), column, _grouped(result, values))


def _grouped(result: RewardModelResult, values: Iterable[tuple[str, ...]]) -> list[Group]:
    """A group for each value, the largest first; a pair of several values is in several groups."""
    places: dict[str, list[int]] = {}
    for place, several in enumerate(values):
        for value in dict.fromkeys(several):
            places.setdefault(value, []).append(place)
    sizes = Counter({value: len(at) for value, at in places.items()})
    order = sorted(sizes, key=lambda value: (-sizes[value], value))
    return [Group(value, _accuracy_at(result, places[value])) for value in order]


def _accuracy_at(result: RewardModelResult, places: Sequence[int]) -> Interval:
    chosen, rejected = ([scores[at] for at in places] for scores in (result.chosen_scores, result.rejected_scores))
    return pair_accuracy(chosen, rejected)


def _span(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"

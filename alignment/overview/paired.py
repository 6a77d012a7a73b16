"""Two evaluations of the same prompts: differences prompt by prompt, with paired 95% intervals."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alignment.evaluate.metrics import Interval, paired_difference
from alignment.overview.grid import Column, lines
from alignment.runs.folder import RunFolder
from alignment.runs.scores import PARTS, read_scores

NUMBERS = {  # part of scores.jsonl: its numbers, and what their difference is called
    "replies": {"gold": "gold", "reward": "reward", "kl": "kl (nats)", "length": "length (tokens)"},
    "completions": {"nll": "nll (nats per completion)"},
    "pairs": {"correct": "accuracy"},
}
WHAT = {"replies": "prompts", "completions": "completions", "pairs": "pairs"}

Scores = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""part -> method -> id -> the row."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation with its numbers prompt by prompt."""

    name: str
    settings: dict[str, Any]
    scores: Scores


def evaluated(name: str, files: RunFolder, settings: dict[str, Any]) -> Evaluated | None:
    """None of a run that left none.

    Raises:
        UserError: its file is damaged.
    """
    if not files.scores.exists():
        return None
    scores: Scores = {part: {} for part in PARTS}
    for row in read_scores(files.scores):
        scores.setdefault(row["part"], {}).setdefault(row["method"], {})[row["id"]] = row
    return Evaluated(name, settings, scores)


def differences(first: Evaluated, other: Evaluated) -> Iterator[str]:
    """`other` less `first`, of methods of one name, or of the only ones that both have; of what is not paired, why."""
    is_any, strangers, apart = False, dict[str, str](), dict[str, str]()
    for part, numbers in NUMBERS.items():
        ours, theirs = first.scores.get(part, {}), other.scores.get(part, {})
        named = _methods(ours, theirs)
        for one, two in named:
            found = list(_part(part, numbers, first, other, (one, two)))
            is_any = is_any or bool(found)
            apart |= {} if found else {two: WHAT[part]}
            yield from found
        strangers |= {name: first.name for name in ours if name not in [one for one, _ in named]}
        strangers |= {name: other.name for name in theirs if name not in [two for _, two in named]}
    if not is_any:
        yield f"{other.name} and {first.name} evaluated nothing alike: {_apart(first, other, list(apart.values()))}"
        return
    yield from (f"{name}: not paired, for none of its {what} is in both" for name, what in apart.items())
    if strangers:
        words = ", ".join(f"{name} (in {where} alone)" for name, where in strangers.items())
        yield f"not paired, for a model is known by its name: {words}"


def _apart(first: Evaluated, other: Evaluated, unshared: list[str]) -> str:
    """`unshared`: of models that both have, what they have none in common of."""
    if unshared:
        return f"no {' and no '.join(dict.fromkeys(unshared))} are in both"
    parts = [[part for part in NUMBERS if each.scores.get(part)] for each in (first, other)]
    if all(parts) and not set(parts[0]) & set(parts[1]):
        return f"{first.name} has {' and '.join(parts[0])}, {other.name} {' and '.join(parts[1])}"
    return "neither a prompt nor a model's name is in both"


def _methods(first: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str]]:
    shared = [(name, name) for name in first if name in other]
    if not shared and len(first) == len(other) == 1:
        return list(zip(first, other, strict=True))
    return shared


def _part(
    part: str, numbers: dict[str, str], first: Evaluated, other: Evaluated, methods: tuple[str, str]
) -> Iterator[str]:
    one, two = first.scores[part][methods[0]], other.scores[part][methods[1]]
    shared = [key for key in one if key in two]
    if not shared:
        return
    names = methods[0] if methods[0] == methods[1] else f"{methods[1]} less {methods[0]}"
    yield ""
    counts = f"{len(shared)} shared {WHAT[part]} (of {len(one)} and {len(two)})"
    yield f"{names}: {other.name} less {first.name}, paired on {counts}, with 95% intervals"
    if len(shared) < 2:
        yield "  an interval needs two of them"
        return
    titles, cells = [], []
    for number, title in numbers.items():
        having = [each for each, scores in ((first, one), (other, two)) if any(number in scores[k] for k in shared)]
        if not having:
            continue
        both = [key for key in shared if number in one[key] and number in two[key]]
        if len(having) == 1:
            yield f"  {number}: measured in {having[0].name} alone"
        elif _judge(first.settings, number) != _judge(other.settings, number):
            yield f"  {number}: measured by something else in each, so that there is no difference of it"
        elif len(both) < 2:
            yield f"  {number}: measured of {len(both)} of them in both, and an interval needs two"
        else:
            titles.append(title)
            cells.append(_words(paired_difference([two[k][number] for k in both], [one[k][number] for k in both])))
    if titles:
        yield from lines([Column("", titles), Column("difference", cells)])


def _judge(settings: dict[str, Any], number: str) -> Any:
    """What a number is measured by: it must be the same in both."""
    if number == "kl":
        runs = settings.get("runs")
        return runs.get(settings.get("baseline")) if isinstance(runs, dict) else None
    return settings.get(number) if number in ("gold", "reward") else None


def _words(found: Interval) -> str:
    verdict = "above 0" if found.low > 0 else "below 0" if found.high < 0 else "includes 0"
    return f"{found.mean:+.4g} [{found.low:+.4g}, {found.high:+.4g}] {verdict}"

"""The evaluations in a run's `metrics.jsonl`, with the 95% intervals that their rows allow."""

from typing import Any

from alignment.config.metrics import ACCURACY, EVAL, PAIRS, STDERR, headlines
from alignment.evaluate.metrics import Z95, proportion

CLUSTERED = "rewards/right"  # of a process reward model: the steps of one reply are no independent trials


def evaluations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that hold one."""
    return [row for row in rows if any(name.startswith(EVAL) for name in row)]


def interval_of(row: dict[str, Any], name: str) -> tuple[float, float] | None:
    """Of an evaluation's metric: Wilson's for the accuracy on pairs, that of the normal distribution for a mean with
    its standard error. None of others."""
    for plain in (ACCURACY, "reward", "gold"):
        start = name.removesuffix(plain)
        if not name.startswith(EVAL) or start + plain != name or not start.endswith("/"):
            continue
        pairs, error = row.get(f"{start}{PAIRS}"), row.get(f"{start}{STDERR}{plain}")
        if plain == ACCURACY and pairs and f"{start}{CLUSTERED}" not in row:
            share = proportion(min(row[name] * pairs, pairs), int(pairs))
            return share.low, share.high
        if error is not None:
            return row[name] - Z95 * error, row[name] + Z95 * error
    return None


def value_words(row: dict[str, Any], name: str) -> str:
    """The value of a metric, with its interval where it has one."""
    found = interval_of(row, name)
    return f"{row[name]:.4g}" + ("" if found is None else f" [{found[0]:.3g}, {found[1]:.3g}]")


def course(rows: list[dict[str, Any]]) -> list[str]:
    """What the evaluations of a run say: a line for each main metric, of the first one and of the last."""
    found = evaluations(rows)
    if not found:
        return []
    first, last = found[0], found[-1]
    names = headlines(name for name in last if name.startswith(EVAL))
    if first is last:
        return [f"{name} {value_words(last, name)} (step {last['step']})" for name in names]
    steps = f"(step {first['step']} -> {last['step']})"
    return [
        f"{name} {f'{value_words(first, name)} -> ' if name in first else ''}{value_words(last, name)} {steps}"
        for name in names
    ]

"""The columns of a file of rows, as the file has them: their kinds, what they hold, and which of them nothing reads."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.check.rows import MARGINS, RATINGS
from alignment.config.columns import ALPACA, taken_by
from alignment.config.data import DataConfig, ExampleKind
from alignment.config.margin import MarginConfig, MarginScale
from alignment.config.sources import Format
from alignment.data.detect import RATED, format_of
from alignment.terminal import say

FEW = 8  # different values that are named one by one
SHOWN = 40  # characters of a value
REPLIES = {
    ExampleKind.prompts: (),
    ExampleKind.demonstrations: ("completion", "chosen"),
    ExampleKind.pairs: ("chosen", "rejected"),
    ExampleKind.labeled: ("completion", "label", "chosen", "rejected"),
    ExampleKind.scored: ("completion",),
    ExampleKind.steps: ("completions", "labels"),
}
HELPSTEER = (*(name for names in RATED for name in names), "context", "preference_strength", "overall_preference")
PROMPTS = {
    Format.native: ("prompt",),
    Format.hh: (),
    Format.alpaca: tuple(name for name in ALPACA if name != "output"),
    Format.sharegpt: ("conversations",),
    Format.messages: ("messages",),
    Format.text: ("text",),
    Format.toy: ("prompt",),
}


def tell(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each column: what it holds, in how many rows, and the first value."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    width = max(map(len, names), default=0)
    for key in names:
        values = [row[key] for row in rows if row.get(key) is not None]
        types = ", ".join(kind for kind, _ in Counter(_kind(value) for value in values).most_common())
        share = "" if len(values) == len(rows) else f" in {len(values)} of {len(rows)} rows"
        sample = json.dumps(values[0], ensure_ascii=False, default=str) if values else ""
        cut = sample if len(sample) <= SHOWN else f"{sample[:SHOWN]}..."
        say(f"  {key:<{width}}  {types or 'null'}{share}  {cut}")


def tell_use(rows: Sequence[Mapping[str, Any]], format: Format, kind: ExampleKind, data: DataConfig) -> None:
    """Which columns are read under another name, and which are not read at all. rows: as the file has them."""
    if data.columns:
        say(f"read under our names: {', '.join(f'{column} as {field}' for field, column in data.columns.items())}")
    unread = unread_of(rows, format, kind, data)
    if not unread:
        return
    if kind is ExampleKind.prompts:
        say(f"columns that are kept for functions which ask for them, and else not read: {', '.join(unread)}")
        return
    fields = {column: field for field, column in data.columns.items()}
    rated = kind is ExampleKind.pairs and any(fields.get(name, name) in RATINGS for name in unread)
    ways = [MARGINS] if rated else []
    if not all(name in fields for name in unread):
        ways.append("data.columns.FIELD=COLUMN reads a column as our FIELD")
    told = "; ".join(ways) or "this task takes nothing of them"
    say(f"columns that training does not read: {', '.join(unread)} ({told})")


def unread_of(rows: Sequence[Mapping[str, Any]], format: Format, kind: ExampleKind, data: DataConfig) -> list[str]:
    """The columns of the file that a task of such rows takes nothing of.

    Args:
        format: which the rows are parsed as.
    """
    fields = {*PROMPTS[format], *REPLIES[kind], *_graded(kind, data)}
    fields |= {name for name in taken_by(kind) if name in ("system", "tools", "tags", "weight", "chat_template_kwargs")}
    if format is Format.alpaca and kind is not ExampleKind.prompts:
        fields.add("output")
    names = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    moved = {column for field, column in data.columns.items() if field not in fields}
    read = {data.columns.get(field, field) for field in fields}
    if any(format_of(row) is Format.helpsteer for row in rows):
        rated = ("helpfulness",)
        read |= {name for name in HELPSTEER if name not in rated or kind is ExampleKind.scored}
    heads = {column.partition(".")[0] for column in read if column not in names}
    if kind is ExampleKind.prompts and "prompt" not in names and not {*PROMPTS[format]} & names.keys():
        heads |= {"completion", "chosen"}  # whose turns before the last are the prompt then
    return [name for name in names if name in moved or name not in read | heads]


def _graded(kind: ExampleKind, data: DataConfig) -> tuple[str, ...]:
    """The fields of a row's grades that are read."""
    if kind is ExampleKind.scored:
        return tuple(data.scores) or ("score",)
    return _margin(data.margin) if kind is ExampleKind.pairs else ()


def _margin(margin: MarginConfig) -> tuple[str, ...]:
    match margin.scale:
        case MarginScale.none:
            return ()
        case MarginScale.score:
            return (margin.chosen_column, margin.rejected_column)
        case MarginScale.given:
            return (margin.column or "margin",)
        case _:
            return (margin.column or "rating",)


def _kind(value: Any) -> str:
    """As people who write JSON and tables call it."""
    names = {bool: "true or false", str: "text", int: "number", float: "number", list: "list", dict: "object"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), type(value).__name__)


def distribution(values: Sequence[Any]) -> str:
    """Each value by its number; of many numbers their spread."""
    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    counts = Counter(f"{value:g}" if isinstance(value, float) else str(value) for value in flat)
    numbers = [value for value in flat if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(counts) > FEW and len(numbers) == len(flat):
        return f"{spread(numbers)}, least {min(numbers):g}"
    named = ", ".join(f"{value[:SHOWN]} ({count}x)" for value, count in counts.most_common(FEW))
    return named + (f" and {len(counts) - FEW} more values" if len(counts) > FEW else "")


def spread(numbers: Sequence[float]) -> str:
    ordered = sorted(numbers)
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"median {ordered[len(ordered) // 2]:g}, 95% up to {high:g}, most {ordered[-1]:g}"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f}%"

"""The layout of rows, told from their fields and what those hold. A pure function of the rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.config.columns import NEEDED, ExampleKind, taken_by
from alignment.config.errors import UserError
from alignment.config.sources import Format
from alignment.data.records import DataError, Source
from alignment.data.row_parsers import HH_TURN

BY = {  # by what a layout is known
    Format.native: "prompt, completion, chosen, rejected: texts, or lists of messages",
    Format.hh: "chosen and rejected are dialogues of Human: and Assistant:",
    Format.alpaca: "instruction with output, or with chosen and rejected",
    Format.sharegpt: "conversations of turns",
    Format.messages: "messages of role and content",
    Format.text: "text alone",
    Format.helpsteer: "a prompt with the ratings of its response, or two responses with a preference",
    Format.oasst: "trees of messages, prompter and assistant",
}
CALLED = {  # our fields by what others call them
    "prompt": ("question", "query", "problem", "input", "instruction", "user", "post", "context"),
    "completion": ("answer", "response", "output", "reply", "solution", "target", "assistant", "summary"),
    "chosen": (
        "better",
        "preferred",
        "accepted",
        "winner",
        "chosen_response",
        "response_chosen",
        "positive",
        "good",
        "win",
    ),
    "rejected": (
        "worse",
        "dispreferred",
        "loser",
        "rejected_response",
        "response_rejected",
        "negative",
        "bad",
        "lose",
    ),
    "label": ("desirable", "is_desirable", "is_good", "liked", "thumbs_up", "feedback"),
    "score": ("reward", "rating", "grade", "quality", "helpfulness"),
    "completions": ("steps",),
    "labels": ("ratings", "step_labels"),
}
WORDS = {
    ExampleKind.labeled: "replies with a label",
    ExampleKind.scored: "replies with a score",
    ExampleKind.steps: "replies in steps, each with a label,",
}
RATED = (("response_1", "response_2"), ("response1", "response2"), ("response", "helpfulness"))
NATIVE = ("prompt", "completion", "chosen", "rejected", "completions", "label", "labels", "score")
SHOWN = 12  # names of a row's fields


class UnknownLayout(UserError):
    """The rows have no layout that is known, or several."""


def detect(
    first: Sequence[tuple[Source, Mapping[str, Any] | DataError]], part: str, need: ExampleKind | None
) -> Format:
    """The layout of a file by its first rows; native where there are none.

    Args:
        part: where the data are in the config.
        need: what the task takes of a row; None: it may be any.

    Raises:
        UnknownLayout: they have none that is known, or several; names the rows, their fields, and the ways out.
    """
    rows = [(source, row) for source, row in first if not isinstance(row, DataError)]
    found: dict[Format, Source] = {}
    for source, row in rows:
        if (kind := format_of(row)) is not None:
            found.setdefault(kind, source)
    if len(found) > 1:
        places = ", ".join(f"{kind.value} ({source})" for kind, source in found.items())
        raise UnknownLayout(f"the rows are of several layouts, {places}: {part}.format says which is to be read")
    if rows and not found:
        source, row = rows[0]
        raise UnknownLayout(f"{source}: {ways(row, part, need)}")
    return next(iter(found), Format.native)


def known_by(format: Format, first: Sequence[tuple[Source, Mapping[str, Any] | DataError]]) -> str:
    """By what the layout of rows was told: of native ones, which have many forms, the fields that are read."""
    there = {
        name for _, row in first if not isinstance(row, DataError) for name, value in row.items() if value is not None
    }
    fields = [name for name in NATIVE if name in there]
    return ", ".join(fields) if format is Format.native and fields else BY[format]


def ways(row: Mapping[str, Any], part: str, need: ExampleKind | None) -> str:
    """A row's fields, what the task takes, and how to say which is which; what each layout has."""
    names = [name for name, value in row.items() if value is not None]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    has = f"of {', '.join(names[:SHOWN])}{more}" if names else "without fields"
    kinds = list(NEEDED) if need is None else [need]
    takes = ", ".join(f"{WORDS.get(kind, kind.value)} take {' + '.join(NEEDED[kind])}" for kind in kinds)
    likely = _likely(row, need)
    found = {"FIELD": "COLUMN"} if need is None and not likely else {**_missing(row, need), **likely}
    columns = " ".join(_settings(found, part))
    known = "; ".join(f"{kind.value} ({by})" for kind, by in BY.items())
    way = f"{columns} says which columns are meant ({takes}), or {part}.format=NAME which layout the rows have"
    return f"the layout of a row {has} is not known: {way}: {known}"


def way_out(row: Mapping[str, Any], format: Format, part: str, need: ExampleKind) -> str:
    """What would read a row that is not as its layout has rows; "" where that is not known."""
    other = format_of(row)
    if other is not None and other is not format and format is not Format.toy:
        return f"; such rows are read by {part}.format={other.value} ({BY[other]})"
    likely = _likely(row, need)
    missing = _missing(row, need) if format is Format.native else {}
    found = " ".join(_settings({**missing, **likely}, part))
    if likely:
        return f"; {found} may name what is meant"
    unread = [name for name, value in row.items() if value is not None and name not in taken_by(need)]
    if not missing or not unread:
        return ""
    pairs = (
        f" (of pairs: {part}.columns.chosen=COLUMN {part}.columns.rejected=COLUMN)" if "completion" in missing else ""
    )
    return f"; {found} says which column is meant{pairs}, of {', '.join(unread[:SHOWN])}"


def _settings(columns: Mapping[str, str], part: str) -> list[str]:
    return [f"{part}.columns.{field}={column}" for field, column in columns.items()]


def _missing(row: Mapping[str, Any], need: ExampleKind | None) -> dict[str, str]:
    """The fields that a native row lacks, of a column yet to be named."""
    fields = NEEDED[need or ExampleKind.prompts]
    has_dialogue = any(isinstance(row.get(name), list) for name in fields if name != "prompt")
    return {field: "COLUMN" for field in fields if row.get(field) is None and not (field == "prompt" and has_dialogue)}


def _likely(row: Mapping[str, Any], need: ExampleKind | None) -> dict[str, str]:
    """Our field -> the column that is likely it, of the fields that the task takes."""
    there = {name.lower(): name for name, value in row.items() if value is not None}
    fields = ("prompt", "completion", "chosen", "rejected") if need is None else taken_by(need)
    taken: dict[str, str] = {}
    for field in (name for name in CALLED if name in fields):
        name = next(
            (there[name] for name in CALLED[field] if name in there and there[name] not in taken.values()), None
        )
        if field not in there and name is not None:
            taken[field] = name
    if {"chosen", "rejected"} <= {*taken, *there}:
        taken.pop("completion", None)
    elif need in (None, ExampleKind.demonstrations, ExampleKind.labeled):
        taken = {field: name for field, name in taken.items() if field not in ("chosen", "rejected")}
    return taken


def format_of(row: Mapping[str, Any]) -> Format | None:
    """The layout of one row; None where it is none that is known."""
    there = {name for name, value in row.items() if value is not None}
    chosen, rejected = row.get("chosen"), row.get("rejected")
    is_asked = bool({"prompt", "context"} & there)
    if {"message_id", "role", "text"} <= there or _is_tree(row.get("prompt")):
        return Format.oasst
    if is_asked and any(there.issuperset(names) for names in RATED):
        return Format.helpsteer
    if _is_transcript(chosen) and (rejected is None or _is_transcript(rejected)):
        return Format.hh
    if _are_turns(row.get("messages")) and not (_are_turns(chosen) or {"prompt", "chosen"} <= there):
        return Format.messages
    if "prompt" in there or _are_turns(row.get("completion")) or _are_turns(chosen):
        return Format.native
    if _are_turns(row.get("conversations")):
        return Format.sharegpt
    if "instruction" in there and ({"output", "chosen"} & there or not {*CALLED["completion"]} & there):
        return Format.alpaca
    return Format.text if isinstance(row.get("text"), str) else None


def _are_turns(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(turn, dict) and bool({"role", "from"} & turn.keys()) for turn in value)


def _is_transcript(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    head, *rest = HH_TURN.split(value)
    return not head.strip() and {"Human", "Assistant"} <= set(rest[::2])


def _is_tree(value: Any) -> bool:
    return isinstance(value, dict) and "replies" in value

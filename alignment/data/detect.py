"""The layout of rows, told from their fields and what those hold. A pure function of the rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.config.errors import UserError
from alignment.config.sources import Format
from alignment.data.records import DataError, Source
from alignment.data.row_parsers import HH_TURN

BY = {  # by what a layout is known
    Format.native: "a prompt, or turns in completion or in chosen and rejected",
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
}
RATED = (("response_1", "response_2"), ("response1", "response2"), ("response", "helpfulness"))
NATIVE = ("prompt", "completion", "chosen", "rejected", "completions", "label", "labels", "score")
SHOWN = 12  # names of a row's fields


def detect(first: Sequence[tuple[Source, Mapping[str, Any] | DataError]], part: str) -> Format:
    """The layout of a file by its first rows; native where there are none.

    Args:
        part: where the data are in the config.

    Raises:
        UserError: they have none that is known, or several; names the rows, their fields, and the ways out.
    """
    rows = [(source, row) for source, row in first if not isinstance(row, DataError)]
    found: dict[Format, Source] = {}
    for source, row in rows:
        if (kind := format_of(row)) is not None:
            found.setdefault(kind, source)
    if len(found) > 1:
        places = ", ".join(f"{kind.value} ({source})" for kind, source in found.items())
        raise UserError(f"the rows are of several layouts, {places}: {part}.format says which is to be read")
    if rows and not found:
        source, row = rows[0]
        raise UserError(f"{source}: the layout of the row is not known: {ways(row, part)}")
    return next(iter(found), Format.native)


def known_by(format: Format, first: Sequence[tuple[Source, Mapping[str, Any] | DataError]]) -> str:
    """By what the layout of rows was told: of native ones, which have many forms, the fields that are read."""
    there = {
        name for _, row in first if not isinstance(row, DataError) for name, value in row.items() if value is not None
    }
    fields = [name for name in NATIVE if name in there]
    return ", ".join(fields) if format is Format.native and fields else BY[format]


def ways(row: Mapping[str, Any], part: str) -> str:
    """A row's fields, and what to say of them."""
    names = [name for name, value in row.items() if value is not None]
    has = f"it has {', '.join(names[:SHOWN])}" if names else "it has no fields"
    known = ", ".join(kind.value for kind in BY)
    columns = suggested(row, part) or f"{part}.columns.prompt=COLUMN"
    return f"{has}; {columns} says what its columns are, {part}.format which layout it has ({known})"


def way_out(row: Mapping[str, Any], format: Format, part: str) -> str:
    """What would read a row that is not as its layout has rows; "" where that is not known."""
    other = format_of(row)
    if other is not None and other is not format and format is not Format.toy:
        return f"; such rows are read by {part}.format={other.value} ({BY[other]})"
    way = suggested(row, part)
    return f"; {way} may name what is meant" if way else ""


def suggested(row: Mapping[str, Any], part: str) -> str:
    """The override that names the columns which are likely our fields; "" where there are none."""
    there = {name.lower(): name for name, value in row.items() if value is not None}
    taken: dict[str, str] = {}
    for field, names in CALLED.items():
        name = next((there[name] for name in names if name in there and there[name] not in taken.values()), None)
        if field not in there and name is not None:
            taken[field] = name
    if "chosen" in taken or "chosen" in there:
        taken.pop("completion", None)
    return " ".join(f"{part}.columns.{field}={name}" for field, name in taken.items())


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

"""Rows to records: whatever the layout, the same rules judge a prompt, a reply and a pair."""

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

from alignment.config.vocabulary import Format, Need, Template
from alignment.data.layouts import LAYOUTS, REPLIES, Dialogues, Row
from alignment.data.records import Message, Record, Source, assistant

MarginOf = Callable[[Mapping[str, Any], Source], float | None]


def parse(row: Mapping[str, Any], source: Source, format: Format, need: Need, margin_of: MarginOf) -> Record:
    """The record of a row; a null field counts as absent.

    Args:
        need: `pairs` takes chosen and rejected; `demonstrations` the completion, or else the chosen reply; `prompts`
            the prompt, whatever the replies are.
        margin_of: called for pairs only.

    Raises:
        DataError: a field is missing, empty or of the wrong type; roles are out of order; a reply is blank; the
            replies of a pair are the same or answer different prompts; a demonstration is labelled undesirable.
    """
    fields = Row({key: value for key, value in row.items() if value is not None}, source)
    if format is Format.text:
        return _text(fields)
    dialogues = LAYOUTS[format](fields)
    match need:
        case Need.prompts:
            return Record(_any_prompt(fields, dialogues), (), None, source, fields.tags())
        case Need.demonstrations:
            prompt, reply = _demonstration(fields, dialogues)
            return Record(prompt, (assistant(reply),), None, source)
        case Need.pairs:
            prompt, chosen, rejected = _pair(fields, dialogues)
            return Record(prompt, (assistant(chosen), assistant(rejected)), margin_of(row, source), source)


def _text(row: Row) -> Record:
    text = row.text("text")
    if not text.strip():
        raise row.error("text: it is empty")
    return Record([], (assistant(text),), None, row.source, template=Template.none)


def _any_prompt(row: Row, dialogues: Dialogues) -> list[Message]:
    if "prompt" in dialogues:
        return _checked(row, "prompt", dialogues["prompt"])
    key = next((key for key in REPLIES if key in dialogues), None)
    if key is None:
        raise row.error("there is no prompt: the row has none of the fields of its format")
    return _checked(row, key, dialogues[key][:-1])


def _demonstration(row: Row, dialogues: Dialogues) -> tuple[list[Message], str]:
    key = next((key for key in ("completion", "chosen") if key in dialogues), None)
    if key is None:
        raise row.error("there is no reply to learn: the row has neither a completion nor a chosen reply")
    if key == "completion" and "label" in row.fields and row.fields["label"] is False:
        raise row.error("label is false: an undesirable reply is no demonstration")
    return _split(row, key, dialogues[key])


def _pair(row: Row, dialogues: Dialogues) -> tuple[list[Message], str, str]:
    for key in ("chosen", "rejected"):
        row.require(key, need=": a pair needs `chosen` and `rejected`")
    chosen_prompt, chosen = _split(row, "chosen", dialogues["chosen"])
    rejected_prompt, rejected = _split(row, "rejected", dialogues["rejected"])
    if chosen_prompt != rejected_prompt:
        turns = zip_longest(chosen_prompt, rejected_prompt)
        first = next(number for number, (left, right) in enumerate(turns, start=1) if left != right)
        raise row.error(f"chosen and rejected answer different prompts: turn {first} differs")
    if chosen.strip() == rejected.strip():
        raise row.error("chosen and rejected are the same reply")
    return chosen_prompt, chosen, rejected


def _split(row: Row, key: str, dialogue: list[Message]) -> tuple[list[Message], str]:
    if not dialogue or dialogue[-1]["role"] != "assistant":
        raise row.error(f"{key}: the dialogue must end with the assistant's reply")
    reply = dialogue[-1]["content"]
    if not reply.strip():
        raise row.error(f"{key}: the reply is empty")
    return _checked(row, key, dialogue[:-1]), reply


def _checked(row: Row, key: str, prompt: list[Message]) -> list[Message]:
    """The prompt of the dialogue in `key`, if it is [system], user, assistant, ..., user, and no turn is blank."""
    roles = [message["role"] for message in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) % 2 == 0 or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        order = ", ".join(roles) or "no turns"
        raise row.error(
            f"{key}: roles out of order: a prompt must be [system], user, assistant, ..., user, got {order}"
        )
    for number, message in enumerate(prompt, start=1):
        if not message["content"].strip():
            raise row.error(f"{key}: turn {number} ({message['role']}) is empty")
    return prompt

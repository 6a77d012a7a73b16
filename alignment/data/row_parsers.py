"""Rows to dialogues: one function for each layout."""

import re
from collections.abc import Callable

from alignment.config.data import Format
from alignment.data.records import Message
from alignment.data.rows import Row

Dialogues = dict[str, list[Message]]
"""Whole dialogues by the field they came from: `prompt` ends where a reply begins, the others with a reply."""

REPLIES = ("completion", "chosen", "rejected")
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def _native(row: Row) -> Dialogues:
    """prompt is text or turns; a reply is text, its turns, or the whole dialogue (then the prompt may be absent)."""
    dialogues: Dialogues = {}
    if "prompt" in row.fields:
        is_text = isinstance(row.fields["prompt"], str)
        dialogues["prompt"] = [_user(row.text("prompt"))] if is_text else row.turns("prompt")
    for key in REPLIES:
        if key in row.fields:
            dialogues[key] = _native_reply(row, key, dialogues)
    return dialogues


def _native_reply(row: Row, key: str, dialogues: Dialogues) -> list[Message]:
    if not isinstance(row.fields[key], list):
        row.require("prompt")
        return [*dialogues["prompt"], _assistant(row.text(key))]
    turns, prompt = row.turns(key), dialogues.get("prompt", [])
    if not turns or turns[0]["role"] == "assistant":
        return prompt + turns
    before, rest = _split_system(prompt)
    own, spoken = _split_system(turns)
    if spoken[: len(rest)] != rest or (before and own and before != own):
        raise row.error(f"field `{key}` must begin with the reply or with the whole prompt, turn by turn")
    return [*(own or before), *spoken]


def _split_system(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    has_one = bool(turns) and turns[0]["role"] == "system"
    return turns[:has_one], turns[has_one:]


def _hh(row: Row) -> Dialogues:
    r"""chosen and rejected are transcripts, "\n\nHuman: ...\n\nAssistant: ..."."""
    return {key: _transcript(row, key) for key in ("chosen", "rejected") if key in row.fields}


def _transcript(row: Row, key: str) -> list[Message]:
    head, *rest = HH_TURN.split(row.text(key))
    if head.strip() or not rest:
        raise row.misfit(rf"field `{key}` must begin with \n\nHuman:, got {row.fields[key][:40]!r}")
    speakers = rest[::2]
    if speakers != (["Human", "Assistant"] * len(speakers))[: len(speakers)]:
        order = ", ".join(speakers)
        raise row.error(f"{key}: roles out of order: a transcript must be Human, Assistant, Human, ..., got {order}")
    # Spaces and line breaks at a turn's ends are the transcript's, not the speaker's.
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": content.strip()}
        for speaker, content in zip(speakers, rest[1::2], strict=True)
    ]


def _alpaca(row: Row) -> Dialogues:
    """instruction, input (after a blank line), output or chosen and rejected; before them history of pairs."""
    parts = [row.text("instruction"), *([row.text("input")] if "input" in row.fields else [])]
    instruction = _user("\n\n".join(part for part in parts if part.strip()))
    prompt = [*_history(row), instruction]
    named = {"completion": "output", "chosen": "chosen", "rejected": "rejected"}
    replies = {key: [*prompt, _assistant(row.text(name))] for key, name in named.items() if name in row.fields}
    return {"prompt": prompt, **replies}


def _history(row: Row) -> list[Message]:
    exchanges = row.fields.get("history", [])
    for exchange in exchanges if isinstance(exchanges, list) else [exchanges]:
        if not isinstance(exchange, list) or [type(text) for text in exchange] != [str, str]:
            raise row.error(f"field `history` must be a list of [instruction, output], got {exchange!r}")
    return [turn for question, answer in exchanges for turn in (_user(question), _assistant(answer))]


def _sharegpt(row: Row) -> Dialogues:
    """conversations; chosen and rejected are a turn or text."""
    return _conversation(row, "conversations")


def _messages(row: Row) -> Dialogues:
    """messages; the last is the reply, unless it is the user's, who then asks for one."""
    return _conversation(row, "messages")


def _conversation(row: Row, key: str) -> Dialogues:
    turns = row.turns(key)
    if not turns:
        raise row.error(f"field `{key}` is empty")
    dialogues: Dialogues = {}
    if turns[-1]["role"] != "assistant":
        dialogues["prompt"] = turns
    if "chosen" not in row.fields and any(turn["role"] == "assistant" for turn in turns):
        dialogues["completion"] = turns
    for name in ("chosen", "rejected"):
        if name in row.fields:
            value = row.fields[name]
            reply = row.turn(name, value) if isinstance(value, dict) else _assistant(row.text(name))
            dialogues[name] = [*turns, reply]
    return dialogues


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


PARSERS: dict[Format, Callable[[Row], Dialogues]] = {
    Format.native: _native,
    Format.toy: _native,
    Format.hh: _hh,
    Format.alpaca: _alpaca,
    Format.sharegpt: _sharegpt,
    Format.messages: _messages,
}

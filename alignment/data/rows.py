"""A row's fields and turns, each read with what is said of it where it is not as it must be."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.data.calls import with_objects
from alignment.data.chat import to_chatml
from alignment.data.records import Cell, DataError, LayoutError, Message, Source

SHAREGPT = {"from": "role", "value": "content"}  # what it calls these, where a turn has not them themselves
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}  # ShareGPT's names; the rest is the template's
CALL = "function_call"  # ShareGPT's role of a turn whose text is a call, and the older name of tool_calls
LEARNED = ("weight", "train")  # whether a turn is learned from: OpenAI's name for it, and axolotl's
LISTS = ("messages", "conversations", "history", "completions", "labels", "chat_template_kwargs")
"""What is never a text; in a table of texts it is JSON."""
EITHER = ("prompt", "completion", "chosen", "rejected")  # what may be a text, or turns
WORDS = "text or a list of turns, {role, content}"
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
A_TURN = 'the assistant\'s turn, {"role": "assistant", "content": ..., '
MISPLACED = {
    "reasoning_content": f'{A_TURN}"reasoning_content": ...}}',
    "tool_calls": f'{A_TURN}"tool_calls": ...}}',
    "documents": '"chat_template_kwargs": {"documents": ...}',
}
SHOWN = 8  # names of fields, of a row that lacks one
WEIGHTS = (1e-6, 1e6)  # the least and the most that a row may count
YES, NO = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0")
RESERVED = signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys() - {"documents", "kwargs"}
"""Of its arguments those that are the run's to give, not a row's."""


@dataclass(frozen=True, slots=True)
class Row:
    """The fields that are there; whatever is wrong with them is said with its place."""

    fields: dict[str, Any]
    source: Source

    @classmethod
    def of(cls, row: Mapping[str, Any], source: Source, unread: Collection[str] = ()) -> "Row":
        """A row of a file; a null counts as absent, and JSON of a table of texts as what it is of.

        Raises:
            DataError: a text stands where a list or an object must.
        """
        fields = {key: value for key, value in row.items() if value is not None and key not in unread}
        for key in LISTS:
            text = fields.get(key)
            if isinstance(text, Cell):
                try:
                    fields[key] = json.loads(text)
                except ValueError as error:
                    raise DataError(
                        source, f"field `{key}` must be JSON in a table of texts, got {text!r:.60}"
                    ) from error
        return cls(fields, source)

    def error(self, what: str) -> DataError:
        return DataError(self.source, what)

    def misfit(self, what: str) -> LayoutError:
        return LayoutError(self.source, what)

    def require(self, key: str, need: str = "") -> Any:
        if key not in self.fields:
            there = ", ".join(f"`{name}`" for name in list(self.fields)[:SHOWN]) or "none"
            raise self.misfit(f"field `{key}` is missing{need}; the row has {there}")
        return self.fields[key]

    def text(self, key: str) -> str:
        value = self.require(key)
        if not isinstance(value, str):
            what = WORDS if key in EITHER else "text"
            raise self.error(f"field `{key}` must be {what}, got {value!r:.60}")
        return value

    def truth(self, name: str, value: Any) -> bool:
        """A yes or no, however the file that it came from wrote it: true, 1, 1.0, "True", "yes" and their opposites."""
        if isinstance(value, bool | int | float) and value in (0, 1):
            return bool(value)
        word = value.strip().lower() if isinstance(value, str) else None
        if word not in (*YES, *NO):
            raise self.error(f"{name} must be one of {', '.join((*YES, *NO))}, got {value!r:.60}")
        return word in YES

    def weight(self) -> float:
        """What the row counts in the mean of a loss: its `weight`, 1 where it has none."""
        value = self.fields.get("weight", 1.0)
        value = value.number() if isinstance(value, Cell) else value
        least, most = WEIGHTS
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            rule = f"field `weight`, what the row counts in the loss, must be a number in [{least:g}, {most:g}]"
            raise self.error(f"{rule} (a row that is not to count is left out), got {value!r:.60}")
        return float(value)

    def turns(self, key: str) -> list[Message]:
        """A list of turns; a system turn without a text is none."""
        value = self.require(key)
        if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
            what = WORDS if key in EITHER else "a list of turns"
            raise self.misfit(f"field `{key}` must be {what}, got {value!r:.60}")
        turns = [self.turn(f"{key}[{index}]", turn) for index, turn in enumerate(value)]
        return [turn for turn in turns if turn["role"] != "system" or turn["content"].strip()]

    def turn(self, name: str, turn: dict[str, Any]) -> Message:
        """A turn of {role, content} or {from, value}, with all else that it carries; a null counts as absent."""
        given = {key: value for key, value in turn.items() if value is not None}
        foreign = {key: given.pop(key) for key, own in SHAREGPT.items() if key in given and own not in given}
        given |= to_chatml([foreign])[0] if foreign else {}
        role = given.get("role")
        if not isinstance(role, str) or not role.strip():
            raise self.error(f"{name}: the role must be text, got {role!r}")
        self.refuse_media(f"{name}.", given)
        if CALL in given:
            raise self.error(f"{name}: `{CALL}` is the older form of `tool_calls`, which is read")
        content = self._content(name, given)
        if role == CALL:
            role, content, given["tool_calls"] = "assistant", "", [self._call(name, content)]
        elif given.get("tool_calls"):
            given["tool_calls"] = self._calls(name, given["tool_calls"])
        role = ROLES.get(role, role)
        said = {key: self.truth(f"{name}: {key}", given.pop(key)) for key in LEARNED if key in given}
        if said.get("train") and role != "assistant":
            raise self.error(f"{name}: train is true, but of all turns the assistant's alone are learned: remove it")
        if said:
            given["weight"] = int(all(said.values()))
        return {**given, "role": role, "content": content}

    def _calls(self, name: str, value: Any) -> list[Any]:
        """The calls of a turn, or the JSON of them, as tables keep it."""
        try:
            calls = json.loads(value) if isinstance(value, str) else value
            return with_objects([json.loads(call) if isinstance(call, str) else call for call in calls])
        except (ValueError, TypeError) as error:
            rule = f"{name}: tool_calls must be a list of calls, their arguments objects or the JSON of one"
            raise self.error(f"{rule}, got {value!r:.60}") from error

    def _content(self, name: str, turn: dict[str, Any]) -> str:
        """The text, or the texts of the parts, one after the other; a turn that calls tools needs none."""
        content = turn.get("content", "" if turn.get("tool_calls") else None)
        parts: list[Any] = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text":
                raise self.error(
                    f"{name}: content must be text or a list of parts of text, got a part of type {kind!r}"
                )
            if not isinstance(part.get("text"), str):
                raise self.error(f"{name}: the content must be text, got {type(part.get('text')).__name__}")
        return "".join(part["text"] for part in parts)

    def _call(self, name: str, text: str) -> dict[str, Any]:
        try:
            (call,) = with_objects([json.loads(text)])
        except ValueError as error:
            raise self.error(
                f"{name}: the call must be a JSON object of name and arguments, got {text!r:.60}"
            ) from error
        if not isinstance(call, dict) or "name" not in call:
            raise self.error(f"{name}: the call must be a JSON object of name and arguments, got {text!r:.60}")
        return {"type": "function", "function": call}

    def refuse_media(self, prefix: str, fields: dict[str, Any]) -> None:
        """Raises:
        DataError: the row or the turn comes with pictures, sounds or films.
        """
        for key in MEDIA:
            if fields.get(key):
                raise self.error(
                    f"`{prefix}{key}`: models are trained on text alone; without the field the text is read"
                )

    def refuse_misplaced(self, *keys: str) -> None:
        """Raises:
        DataError: what a turn holds, or the template's arguments, stands beside them, where no template sees it.
        """
        for key in keys:
            if self.fields.get(key):
                rule = f"field `{key}` would be left out, for it goes into {MISPLACED[key]}"
                raise self.error(f"{rule}; if it is not meant for the template give it another name")

    def tags(self) -> tuple[str, ...]:
        """What any layout may say of a prompt: `tags`, a text or a list of texts."""
        value = self.fields.get("tags", [])
        tags = [value] if isinstance(value, str) else value
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise self.error(f"field `tags` must be text or a list of texts, got {value!r:.60}")
        return tuple(tags)

    def tools(self) -> tuple[dict[str, Any], ...]:
        """The schemas in `tools`: a list of objects, or the JSON of one, as tables keep it."""
        if self.fields.get("functions"):
            raise self.error("`functions` is the older form of `tools`, which is read")
        value = self.fields.get("tools") or []
        try:
            schemas = json.loads(value) if isinstance(value, str) else value
            schemas = [json.loads(each) if isinstance(each, str) else each for each in schemas or []]
        except (ValueError, TypeError) as error:
            raise self.error(f"field `tools` must be a list of function schemas, got {value!r:.60}") from error
        if not all(isinstance(schema, dict) for schema in schemas):
            raise self.error(f"field `tools` must be a list of function schemas, got {value!r:.60}")
        return tuple(schemas)

    def template_kwargs(self) -> dict[str, Any]:
        """What the row gives its template beside the turns, in `chat_template_kwargs`."""
        value = self.fields.get("chat_template_kwargs", {})
        if not isinstance(value, dict):
            raise self.error(f"field `chat_template_kwargs` must be an object, got {value!r:.60}")
        given = {key: each for key, each in value.items() if each is not None}
        if taken := sorted(RESERVED & given.keys()):
            raise self.error(
                f"chat_template_kwargs.{taken[0]} is the run's to say, got {given[taken[0]]!r:.60}: remove it"
            )
        return given

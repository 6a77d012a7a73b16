"""The arguments of a turn's calls, which files keep as objects or as the JSON of one, and templates want as either."""

import json
from collections.abc import Callable, Sequence
from typing import Any

Turn = dict[str, Any]


def with_objects(calls: list[Any]) -> list[Any]:
    """The same calls, their arguments as objects: what transformers' templates are made for. Most write them as JSON,
    and would write the JSON of a text, in quotes and with each of its own behind a backslash.

    Raises:
        ValueError: arguments are neither an object nor the JSON of one.
    """
    return [_changed(call, _object) for call in calls]


def with_json(turns: Sequence[Turn]) -> list[Turn]:
    """The same turns, their calls' arguments as JSON: what templates are made for that write them as they are."""
    return [{**turn, **_calls(turn, _json)} for turn in turns]


def spells_python(turns: Sequence[Turn], text: str) -> bool:
    """Whether a text holds arguments in Python's own notation, {'city': 'Rome'}: its template wrote an object that it
    took for a text."""
    found = [_function(call).get("arguments") for turn in turns for call in turn.get("tool_calls") or []]
    return any(str(each) in text for each in found if each and str(each) != _json(each))


def _function(call: Any) -> dict[str, Any]:
    """Of a call in OpenAI's form, or of one that is a function's name and arguments alone."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    return inner if isinstance(inner, dict) else {}


def _calls(turn: Turn, change: Callable[[Any], Any]) -> Turn:
    calls = turn.get("tool_calls")
    return {"tool_calls": [_changed(call, change) for call in calls]} if calls else {}


def _changed(call: Any, change: Callable[[Any], Any]) -> Any:
    function = _function(call)
    if "arguments" not in function:
        return call
    changed = {**function, "arguments": change(function["arguments"])}
    return {**call, "function": changed} if "function" in call else changed


def _object(arguments: Any) -> Any:
    text = "{}" if arguments is None else arguments
    found = json.loads(text.strip() or "{}") if isinstance(text, str) else text
    if not isinstance(found, dict):
        raise ValueError(f"arguments must be an object or the JSON of one, got {arguments!r:.60}")
    return found


def _json(arguments: Any) -> Any:
    return json.dumps(arguments, ensure_ascii=False)

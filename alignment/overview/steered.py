"""What was changed of a run on its way, from the history in its folder."""

import json
from collections.abc import Sequence
from typing import Any


def steered(history: Sequence[dict[str, Any]]) -> dict[str, str]:
    """key -> from which step on it was another, and its values before and after. history: the lines of it."""
    found: dict[str, str] = {}
    for line in history:
        if "changed" in line:
            _add(found, line["changed"], line["step"], line["before"], line["after"])
    return found


def lengthened(history: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The same of the keys by which the run was made longer."""
    found: dict[str, str] = {}
    for line in history:
        asked, before = line.get("asked"), line.get("before")
        if isinstance(asked, dict) and isinstance(before, dict):
            for key, value in asked.items():
                _add(found, key, line.get("step"), before.get(key), value)
    return found


def _add(found: dict[str, str], key: str, step: int | None, before: Any, after: Any) -> None:
    where = "" if step is None else f"at step {step}: "  # earlier versions did not note it of a longer run
    words = f"{where}{json.dumps(before)} -> {json.dumps(after)}"
    found[key] = f"{found[key]}; {words}" if key in found else words

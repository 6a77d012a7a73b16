"""A run's own notes in its folder, `started.json` and the like, and the lines of its history. A file that was cut short
or changed by hand is told by its name, and a line by its number."""

import json
from pathlib import Path
from typing import Any

from alignment.config.errors import UserError

CHANGE = ("changed", "before", "after", "step")  # what a line of the history has that tells of a changed setting


def read_note(path: Path) -> dict[str, Any]:
    """A file of one JSON object; nothing where there is none.

    Raises:
        UserError: the file cannot be read, or is no JSON object.
    """
    try:
        noted = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError) as error:  # UnicodeDecodeError is one
        raise UserError(f"{path} cannot be read ({error})") from error
    if not isinstance(noted, dict):
        raise UserError(f"{path} must be a JSON object, got {str(noted)[:80]!r}")
    return noted


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of `history.jsonl`; a torn last one is left out, as one that was being written.

    Raises:
        UserError: the file cannot be read, or a line is not what a run writes; names the line and the way out.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    way = "without the line the run goes on, and what it told is forgotten"
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            noted = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number} is no JSON ({error}); {way}, got {line[:80]!r}") from error
        if not isinstance(noted, dict) or ("changed" in noted and not noted.keys() >= set(CHANGE)):
            rule = f"{path}:{number} must be a JSON object, one that tells of a change with {', '.join(CHANGE)}"
            raise UserError(f"{rule}; {way}, got {line[:80]!r}")
        found.append(noted)
    return found

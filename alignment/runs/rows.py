"""The logs of a run, one JSON object a line: `metrics.jsonl`, `samples.jsonl`. Needs neither Hydra nor torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.config.errors import UserError

Row = dict[str, Any]
WITHOUT = "without the line the others are read"


def read_rows(path: Path) -> list[Row]:
    """The rows of a log.

    Raises:
        UserError: as `whole_lines`.
    """
    return [row for _, row in whole_lines(path)]


def whole_lines(path: Path) -> Iterator[tuple[bytes, Row]]:
    """Each line as it is, and its row; a last line without its end is being written, or was torn.

    Raises:
        UserError: the file cannot be read, or a line is not what a run writes; names the line.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
        except ValueError as error:  # UnicodeDecodeError is one
            raise UserError(f"{path}:{number} is no JSON ({error}); {WITHOUT}, got {line[:80]!r}") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}:{number} must be a JSON object with a step; {WITHOUT}, got {line[:80]!r}")
        yield line, row

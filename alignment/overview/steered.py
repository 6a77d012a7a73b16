"""What was changed of a run on its way, from the history in its folder."""

import json
from pathlib import Path

from alignment.config.errors import UserError
from alignment.runs.folder import RunFolder


def steered(folder: Path) -> dict[str, str]:
    """key -> from which step on it was another, and its values before and after.

    Raises:
        UserError: the history is damaged.
    """
    files = RunFolder(folder)
    found: dict[str, str] = {}
    try:
        for line in files.noted():
            if "changed" in line:
                values = f"{json.dumps(line['before'])} -> {json.dumps(line['after'])}"
                words = f"at step {line['step']}: {values}"
                found[line["changed"]] = "; ".join([*filter(None, [found.get(line["changed"])]), words])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{files.history} cannot be read ({error})") from error
    return found

"""What was changed of a run on its way, from the history in its folder."""

import json
from collections.abc import Sequence
from typing import Any


def steered(history: Sequence[dict[str, Any]]) -> dict[str, str]:
    """key -> from which step on it was another, and its values before and after. history: the lines of it."""
    found: dict[str, str] = {}
    for line in history:
        if "changed" in line:
            values = f"{json.dumps(line['before'])} -> {json.dumps(line['after'])}"
            words = f"at step {line['step']}: {values}"
            found[line["changed"]] = "; ".join([*filter(None, [found.get(line["changed"])]), words])
    return found

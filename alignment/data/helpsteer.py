"""HelpSteer's rows as native ones: ratings of single replies, and preferences between two."""

import re
from collections.abc import Mapping
from typing import Any

from alignment.config.data import ExampleKind
from alignment.data.json_rows import Row
from alignment.data.margins import finite
from alignment.data.records import DataError, Source

TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\s*")
ROLES = {"User": "user", "Assistant": "assistant"}
TWO = (("response_1", "response_2", "preference_strength"), ("response1", "response2", "overall_preference"))
MOST = 3  # of a preference, either way


def native_rows(row: Mapping[str, Any], source: Source, need: ExampleKind) -> list[Row]:
    """The one row, with prompt and completion, or chosen and rejected; its score is `helpfulness` where it has no other
    `score`, its margin the size of the preference.

    Raises:
        DataError: the preference is missing, no number in [-3, 3], or 0 where a pair is needed.
    """
    made = {name: value for name, value in row.items() if value is not None}
    if isinstance(made.get("context"), list):
        made.setdefault("prompt", made["context"])
    if isinstance(made.get("prompt"), str):
        made["prompt"] = _turns(made["prompt"])
    if "response" in made:
        made.setdefault("completion", made["response"])
        if "helpfulness" in made:
            made.setdefault("score", made["helpfulness"])
    if need is ExampleKind.prompts:
        return [made]
    for first, second, preference in TWO:
        if first in made and second in made:
            strength = finite(made, preference, source, "preference")
            if not -MOST <= strength <= MOST:
                raise DataError(source, f"field `{preference}` must be in [-{MOST}, {MOST}], got {strength:g}")
            if strength == 0:
                raise DataError(source, f"{preference} is 0: of the two responses none is better")
            chosen, rejected = (second, first) if strength > 0 else (first, second)
            made |= {"chosen": made[chosen], "rejected": made[rejected], "margin": abs(strength)}
    return [made]


def _turns(prompt: str) -> str | list[dict[str, str]]:
    """A prompt of many turns; the first is the user's."""
    first, *rest = TURN.split(prompt)
    if not rest:
        return prompt
    spoken = zip(rest[::2], rest[1::2], strict=True)
    return [
        {"role": "user", "content": first},
        *(
            {"role": ROLES[who], "content": text} for who, text in spoken if text
        ),  # an open "Assistant" asks for a reply
    ]

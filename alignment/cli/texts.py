"""Which keys hold texts: paths and names, which stay as they are typed where a number or a yes would be read."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from alignment.config.tasks import TASKS

NAME = "[^.]+"  # of the user's, in a mapping


def holds_texts(key: str) -> bool:
    """Whether a key, of whatever task, holds a text, or a list or a mapping of such."""
    return _text_keys().fullmatch(key) is not None


@cache
def _text_keys() -> re.Pattern[str]:
    return re.compile("|".join({key for root in TASKS.values() for key in _texts(root)}))


def _texts(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Of a dataclass, as patterns."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        key, hint = f"{prefix}{field.name}", _set(hints[field.name])
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _texts(hint, rf"{key}\.")
        elif get_origin(hint) is dict:
            inner = get_args(hint)[1]
            if isinstance(inner, type) and is_dataclass(inner):
                yield from _texts(inner, rf"{key}\.{NAME}\.")
            elif inner is str:
                yield from (key, rf"{key}\.{NAME}")
        elif str in (hint, *get_args(hint)) or "data" in field.metadata:
            yield key


def _set(hint: Any) -> Any:
    """The type of a value that is not null."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[0] if NoneType in get_args(hint) else hint

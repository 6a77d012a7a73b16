"""Entries of mappings, by keys of their own: `data.train.mix.helpful={path: a.jsonl, weight: 2}`.

OmegaConf makes no new entry of a mapping to dataclasses by its key, but merges a mapping into it.
"""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from alignment.config.tasks import TASKS

ENTRY = re.compile(r"(?P<plus>\+{0,2})(?P<key>[\w.]+)\.(?P<name>\w+)=(?P<value>\{.*\})", re.DOTALL)


def by_mapping(override: str) -> str:
    """`KEY={NAME: {...}}` of `KEY.NAME={...}`, where KEY is such a mapping; any other override as it is."""
    found = ENTRY.fullmatch(override)
    if found is None or found["key"] not in _mappings():
        return override
    return f"{found['plus']}{found['key']}={{{found['name']}: {found['value']}}}"


@cache
def _mappings() -> frozenset[str]:
    return frozenset(key for root in TASKS.values() for key in _of(root))


def _of(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """The keys of a dataclass that hold names and dataclasses."""
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and is_dataclass(hint) and name in {field.name for field in fields(kind)}:
            yield from _of(hint, f"{prefix}{name}.")
        elif get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            yield f"{prefix}{name}"

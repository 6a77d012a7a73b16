"""Entries of mappings, by keys of their own: `data.train.mix.helpful={path: a.jsonl, weight: 2}`, or one by one,
`data.train.mix.helpful.path=a.jsonl data.train.mix.helpful.weight=2`.

OmegaConf makes no new entry of a mapping to dataclasses by its key, but merges a mapping into it.
"""

import re
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from alignment.cli.overrides import is_sweep_of_values
from alignment.config.mappings import mappings
from alignment.config.tasks import TASKS

OVERRIDE = re.compile(r"(?P<plus>\+{0,2})(?P<key>[\w.]+)=(?P<value>.*)", re.DOTALL)


def by_mapping(override: str) -> str:
    """`KEY={NAME: {...}}` of `KEY.NAME={...}` and of `KEY.NAME.field=value`, where KEY is such a mapping; any other
    override, and a sweep, as it is."""
    found = OVERRIDE.fullmatch(override)
    key = None if found is None else next((each for each in _mappings() if found["key"].startswith(f"{each}.")), None)
    if found is None or key is None:
        return override
    names, value = found["key"].removeprefix(f"{key}.").split("."), found["value"] or '""'
    if (len(names) == 1 and not value.startswith("{")) or is_sweep_of_values(override):
        return override
    for name in reversed(names):
        value = f"{{{name}: {value}}}"
    return f"{found['plus']}{key}={value}"


def fields_of_entry(key: str) -> list[str]:
    """The keys that an entry of a mapping has, by its own full key; [] of any other key."""
    kind = _mappings().get(key.rpartition(".")[0])
    return [] if kind is None else [field.name for field in fields(kind)]


@cache
def _mappings() -> dict[str, type[Any]]:
    return {key: kind for root in TASKS.values() for key, kind in mappings(root) if is_dataclass(kind)}

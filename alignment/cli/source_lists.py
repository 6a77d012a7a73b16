"""Lists of sources in a recipe, `data: {train: [{path: a.jsonl, weight: 2}]}`, as the mappings by name they are."""

import re
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

NAMED = {"train": "mix", "eval": "sets"}


def with_names(recipe: Any) -> None:
    """Give each source in a list the name of its file, those behind it with the same one a number; in place."""
    data = recipe.get("data") if isinstance(recipe, DictConfig) else None
    if not isinstance(data, DictConfig):
        return
    for split, key in NAMED.items():
        listed = data.get(split)
        if isinstance(listed, ListConfig):
            data[split] = {key: _by_name(OmegaConf.to_container(listed))}


def _by_name(sources: Any) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for source in sources:
        given = source if isinstance(source, dict) else {"path": source}
        path = given.get("path")
        stem = Path(str(path[0] if isinstance(path, list) and path else path)).name.partition(".")[0]
        name = re.sub(r"\W+", "_", stem).strip("_")
        name = name if name.isidentifier() else f"source_{name}".rstrip("_")
        free = (each for number in count(1) if (each := name if number == 1 else f"{name}_{number}") not in named)
        named[next(free)] = given
    return named

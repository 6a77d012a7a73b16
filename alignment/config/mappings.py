"""The keys of a config that hold a mapping from names of the user's own."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints


def mappings(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, type[Any]]]:
    """Each dotted key of a dataclass that holds one, and the type of its values."""
    own = {field.name for field in fields(kind)}
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and is_dataclass(hint) and name in own:
            yield from mappings(hint, f"{prefix}{name}.")
        elif get_origin(hint) is dict:
            yield f"{prefix}{name}", get_args(hint)[1]

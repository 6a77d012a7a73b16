"""The keys of a config that hold a mapping from names of the user's own."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from alignment.config.errors import ConfigError, require


def mappings(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, type[Any]]]:
    """Each dotted key of a dataclass that holds one, and the type of its values."""
    own = {field.name for field in fields(kind)}
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and is_dataclass(hint) and name in own:
            yield from mappings(hint, f"{prefix}{name}.")
        elif get_origin(hint) is dict:
            yield f"{prefix}{name}", get_args(hint)[1]


def require_patterns(key: str, numbers: dict[str, int]) -> None:
    """Raises:
    ConfigError: a name is no pattern that can be looked for, or its number is below 1.
    """
    for pattern, number in numbers.items():
        require(number >= 1, f"{key}.{pattern} must be >= 1", number)
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{key} must have names or patterns of layers, got {pattern!r} ({error})") from error

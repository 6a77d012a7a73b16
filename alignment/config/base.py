"""What every config dataclass has: a word in the place of an enum's member becomes it, a Path its text, and what is
required is there.

Hydra's configs come with members already; this is for whoever writes TrainConfig(max_steps=10, schedule="linear").
"""

from enum import Enum
from functools import cache
from pathlib import PurePath
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from alignment.config.errors import ConfigError
from alignment.user_error import nearest


class Config:
    """The base of each."""

    __slots__ = ()

    if not TYPE_CHECKING:  # to a type checker, any attribute could be set then

        def __setattr__(self, name: str, value: Any) -> None:
            """Raises:
            ConfigError: a required field is not given, or a word names no member of the field's enum.
            """
            if isinstance(value, str) and value == MISSING:
                raise ConfigError(f"{type(self).__name__} needs {name}=..., got nothing")
            if isinstance(value, PurePath):
                value = str(value)
            kind = _enums(type(self)).get(name)
            if kind is not None:
                key = f"{type(self).__name__}.{name}"
                is_list = isinstance(value, list | tuple)
                value = [_member(kind, key, each) for each in value] if is_list else _member(kind, key, value)
            object.__setattr__(self, name, value)


@cache
def _enums(owner: type[Config]) -> dict[str, type[Enum]]:
    """field -> the enum that its value, or each of its values, is of."""
    found = {}
    for name, hint in get_type_hints(owner).items():
        kinds = [each for each in get_args(hint) if each is not NoneType] if get_origin(hint) is not None else [hint]
        if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
            found[name] = kinds[0]
    return found


def _member(kind: type[Enum], key: str, value: Any) -> Any:
    if not isinstance(value, str) or isinstance(value, kind):
        return value
    names = [str(each.value) for each in kind]
    if value not in names:
        raise ConfigError(f"{key} must be one of {', '.join(names)}, got {value!r}{nearest(value, names)}")
    return kind(value)

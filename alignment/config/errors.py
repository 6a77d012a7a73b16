"""What is said of a user's mistake."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum


class UserError(ValueError):
    """A mistake that its user can mend: told in one line, without a traceback, exit code 2."""


class ConfigError(UserError):
    """A mistake in a config: key, rule and value."""


def require(holds: bool, rule: str, value: object) -> None:
    """Raise `ConfigError("<rule>, got <value>")` unless the rule holds."""
    if not holds:
        raise ConfigError(f"{rule}, got {as_yaml(value)}")


def as_yaml(value: object) -> str:
    """A value as its user types it where Python has other words: null, and a choice by its name."""
    if value is None:
        return "null"
    if isinstance(value, Enum):
        return repr(value.value)
    if isinstance(value, tuple):
        return f"({', '.join(as_yaml(each) for each in value)})"
    return repr(value)


@contextmanager
def error_prefix(key: str, *, own: str | None = None) -> Iterator[None]:
    """Inside, an error of a config that is built here is told under the key by which its user knows it.

    `own`: the key of that config which `key` stands for, and takes the place of where an error begins with it.
    """
    try:
        yield
    except ConfigError as error:
        if own is not None and str(error).startswith((f"{own} ", f"{own}:")):
            raise ConfigError(f"{key}{str(error).removeprefix(own)}") from error
        raise error if str(error).startswith(key) else ConfigError(f"{key}: {error}") from error

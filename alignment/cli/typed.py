"""What is typed, of keys of which one takes the other's place: the run's length in steps or in passes, a model of a
folder or of a config.
"""

from collections.abc import Iterable
from dataclasses import fields

from alignment.config.errors import ConfigError
from alignment.config.model import ModelConfig
from alignment.config.run import RunConfig

LENGTH = ("train.max_steps", "train.epochs")


def with_one_length(overrides: list[str]) -> list[str]:
    """A user who gives the run's length in steps, or in passes, takes it in place of the recipe's, which may have it in
    the other."""
    given = {key: value for key, _, value in (word.lstrip("+").partition("=") for word in overrides) if key in LENGTH}
    asked = [key for key, value in given.items() if value != "null"]
    if len(given) != 1 or len(asked) != 1:
        return overrides
    return [*overrides, *(f"{key}=null" for key in LENGTH if key not in given)]


def require_init_read(config: RunConfig, overrides: Iterable[str]) -> None:
    """A folder's model may be asked for beside a preset's `init`, as in a recipe of toys; not beside a typed one.

    Raises:
        ConfigError: a typed `model.init` would do nothing.
    """
    of_folder = {
        field.name: value.path
        for field in fields(config)
        if isinstance(value := getattr(config, field.name), ModelConfig) and value.path is not None
    }
    for key, equals, _ in (word.lstrip("+").partition("=") for word in overrides):
        part, _, inner = key.partition(".")
        if equals and part in of_folder and f"{inner}.".startswith("init."):
            rule = f"{key} goes with {part}.path=null, a random model (a folder's has its own sizes)"
            raise ConfigError(f"{rule}: leave out one of the two, got {part}.path={of_folder[part]!r}")

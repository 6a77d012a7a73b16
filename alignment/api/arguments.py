"""The arguments of `alignment.run`, sorted into keys of the config and rows that are in memory."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from alignment.api.rows import WAYS, is_rows, kind_of
from alignment.config.data import DataConfig
from alignment.config.errors import ConfigError
from alignment.config.run import RunConfig

SPLITS = {"data": "data.train.path", "eval_data": "data.eval.path"}  # argument -> the key of its path
PLACES = {"data.train": "data", "data.train.path": "data", "data.eval": "eval_data", "data.eval.path": "eval_data"}
KEY = re.compile(r"(\+\+?|~)?[A-Za-z_][^=\s]*")


def require_recipe(recipe: Any) -> None:
    """Raises: ConfigError: it is no name, path or config."""
    if not isinstance(recipe, str | Path | RunConfig):
        got = f"the class {recipe.__name__}, not yet a config" if isinstance(recipe, type) else kind_of(recipe)
        raise ConfigError(
            f"recipe must be a recipe's name, the path of a .yaml, or a config as DPOConfig(...), got {got}"
        )


def sorted_arguments(overrides: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Iterable[Any]]]:
    """The overrides with what the arguments add to them; but for rows in memory, which stand by the argument's name.

    Raises:
        ConfigError: one of them is of no kind that it may be.
    """
    asked = dict(_overrides(overrides))
    rows: dict[str, Iterable[Any]] = {}
    for name, value in given.items():
        if name in SPLITS:
            _require_split(name, value)
        if name in SPLITS and is_rows(value):
            rows[name] = value
        elif name in SPLITS and not isinstance(value, Mapping):
            asked[SPLITS[name]] = value
        elif name == "model" and not isinstance(value, Mapping) and not is_dataclass(value):
            if not isinstance(value, str | PurePath):
                rule = "model must be a folder, a name on the hub, or a dict of the keys of `model`"
                raise ConfigError(f"{rule}, got {kind_of(value)}; save_pretrained writes a loaded model into a folder")
            asked["model.path"] = value
        else:
            asked[name] = value
    return asked, rows


def require_plain(key: str, value: Any) -> Any:
    """A value as YAML has it.

    Raises:
        ConfigError: YAML has no such value; names the key.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if key in PLACES and is_rows(value) and value != []:
        raise ConfigError(
            f"{key} cannot hold rows, got {kind_of(value)}; rows in memory are given as {PLACES[key]}=rows"
        )
    if isinstance(value, Mapping):
        return {str(name): require_plain(f"{key}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [require_plain(f"{key}.{number}", inner) for number, inner in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    rule = f"{key} must be a text, a number, true or false, None, or a list or dict of such"
    raise ConfigError(f"{rule}, got {kind_of(value)}")


def _overrides(overrides: Any) -> Mapping[Any, Any]:
    example = '{"loss.beta": 0.2, "distributed": "zero2"}'
    if overrides is None:
        return {}
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"overrides must be a dict, as {example}, got {kind_of(overrides)}")
    for key in overrides:
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise ConfigError(f"overrides must have keys of the config with their dots, as {example}, got {key!r}")
    return overrides


def _require_split(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        if not is_rows(value) and not isinstance(value, str | PurePath | list | tuple):
            raise ConfigError(f"{name} must be {WAYS}, got {kind_of(value)}")
        return
    if type(value).__name__ == "DatasetDict":
        splits = ", ".join(map(str, value))
        raise ConfigError(f"{name} must be one split of a DatasetDict, as {name}=dataset['train']; it has {splits}")
    if name == "eval_data":
        keys = "keys of held-out rows are data={'eval': {...}}"
        raise ConfigError(f"{name} must be {WAYS}, got {kind_of(value)}; {keys}, one row is {name}=[row]")
    known = {field.name for field in fields(DataConfig)}
    if value and not {str(key).partition(".")[0] for key in value} & known:
        ways = "one row is data=[row], columns are data=datasets.Dataset.from_dict(columns)"
        got = f"a dict of {', '.join(map(str, value))}"
        raise ConfigError(f"data must be {WAYS}, or a dict of the keys of `data`, got {got}; {ways}")

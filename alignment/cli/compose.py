"""From YAML and overrides to a checked dataclass: recipes are found, composed and closed here."""

import json
import re
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from alignment.config.parts import ConfigError
from alignment.config.tasks import TASKS, RunConfig

PLAIN = re.compile(r"[\w./@-]+")  # a string that Hydra's override grammar takes without quotes


def shipped(name: str) -> Path:
    """`conf` and `recipes`: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    packaged = package / f"_{name}"
    return packaged if packaged.is_dir() else package.parent / name


class Recipes(SearchPathPlugin):
    """Puts the shipped recipes on Hydra's search path, behind the user's own folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="recipes", path=f"file://{shipped('recipes')}")


def register() -> None:
    """Tell Hydra of the recipes and of the task schemas, which a recipe names as `task: dpo`."""
    Plugins.instance().register(Recipes)
    for name, root in TASKS.items():
        ConfigStore.instance().store(group="task", name=name, node=root, package="_global_")


def resolve(composed: DictConfig) -> RunConfig:
    """Composed YAML -> validated dataclass.

    It is merged again onto a fresh schema, because `+key=value` passes the first one.

    Raises:
        ConfigError: a required value is missing, or a value breaks a rule.
        OmegaConfBaseException: an unknown key, a wrong type.
    """
    root = OmegaConf.get_type(composed)
    if root not in TASKS.values():
        raise ConfigError(f"a recipe's defaults must name its task, one of {', '.join(TASKS)}, got none")
    given = {
        str(key): value
        for key, value in cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True)).items()
        if key != "hydra"
    }
    closed = OmegaConf.merge(OmegaConf.structured(root), given)
    missing = sorted(OmegaConf.missing_keys(closed))
    if missing:
        raise ConfigError(f"{missing[0]} is required, got nothing")
    try:
        return cast(RunConfig, OmegaConf.to_object(closed))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def compose(recipe: str, overrides: dict[str, Any]) -> RunConfig:
    """A recipe with overrides by dotted key, from within a run."""
    return resolve(hydra_compose(recipe, [f"{key}={_written(value)}" for key, value in overrides.items()]))


def _written(value: Any) -> str:
    """A value in Hydra's override grammar."""
    return value if isinstance(value, str) and PLAIN.fullmatch(value) else json.dumps(value)


def recipes(folders: list[Path]) -> dict[str, Path]:
    """name -> file of every recipe in these folders."""
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def first_comment(path: Path) -> str:
    """What a recipe says of itself in its first line."""
    return path.read_text().splitlines()[0].removeprefix("#").strip()

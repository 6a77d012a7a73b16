"""The verbs that look at models and rows, in one process: their config is a recipe's, mostly `evaluate`'s."""

from pathlib import Path
from typing import cast

from alignment.cli.compose import composing, resolve, single
from alignment.cli.config_errors import COMPOSE_ERRORS
from alignment.cli.overrides import readable, written
from alignment.cli.run import error_line
from alignment.config.inputs import check_inputs
from alignment.config.run import RunConfig
from alignment.config.tasks import EvaluateConfig
from alignment.hub.pin import pinned
from alignment.user_error import fail

RECIPE = "evaluate"


def evaluation_config(verb: str, overrides: list[str]) -> EvaluateConfig:
    """The recipe with these keys, its names on the hub fetched and its inputs found; a mistake ends the command."""
    return cast(EvaluateConfig, looked_at(verb, RECIPE, overrides))


def looked_at(verb: str, recipe: str, overrides: list[str]) -> RunConfig:
    """The same of any recipe, of which nothing is run."""
    with composing([]):
        try:
            config = pinned(resolve(single(recipe, overrides)))
            check_inputs(config)
        except COMPOSE_ERRORS as error:
            fail(f"{verb}: {error_line(error, overrides)}")
    return config


def set_to(key: str, value: object) -> str:
    """`key=value`, whatever signs the value has."""
    return f"{key}={written(value)}"


def as_typed(words: list[str]) -> list[str]:
    """What a user has typed as key=value, in Hydra's grammar."""
    return [readable(word, is_sweep=False) for word in words]


def model_folder(path: str) -> str:
    """A run's folder stands for its model."""
    inside = Path(path).expanduser() / "model"
    return str(inside) if (inside / "config.json").is_file() and not Path(path, "config.json").is_file() else path

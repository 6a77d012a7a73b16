"""The verb `plan`: whether a run fits, line by line. Nothing is loaded and nothing is written."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignment.cli.compose import composing, resolve, single
from alignment.cli.config_errors import COMPOSE_ERRORS, error_line
from alignment.cli.recipes import shipped
from alignment.config.data import Format
from alignment.config.errors import ConfigError, UserError
from alignment.config.run import RunConfig
from alignment.process import importing
from alignment.terminal import say, working
from alignment.user_error import fail, nearest

SHAPES = Path(__file__).parents[1] / "plan" / "shapes"
ROWS = "rows.jsonl"  # stands for those that a plan has no need of
FLAGS = ("--for", "--shape", "--mfu")


def plan_recipe(
    recipe: str, overrides: list[str], own: list[Path], *, wanted: str | None, shape: str | None, mfu: float | None
) -> None:
    """Exit code 2 for a user's mistake; whether the run fits is told, and changes no exit code."""
    try:
        config = composed(recipe, overrides, own, shape)
    except COMPOSE_ERRORS as error:
        fail(f"{recipe}: {error_line(error, overrides)}")
    with importing():
        from alignment.plan.command import planned_lines
    try:
        with working("counting ..."):
            lines = planned_lines(recipe, config, wanted, mfu)
    except UserError as error:
        fail(f"{recipe}: {error}")
    for line in lines:
        say(line)


def composed(recipe: str, overrides: list[str], own: list[Path], shape: str | None) -> RunConfig:
    """The config, with what it leaves open that a plan can do without, and the shape where it names no model or that of
    a preset.

    Raises:
        ConfigError, and others: as composing does.
    """
    with composing(own, recipe):
        first = single(recipe, overrides)
        if shape is not None and _is_set(first, "model.path"):
            named = OmegaConf.select(first, "model.path")
            raise ConfigError(f"--shape stands for a model: leave out one of the two, got model.path={named!r}")
        folder = _shape_of_preset(first) if shape is None else shape_folder(shape)
        if folder is None and _lacks_model(first):
            rule = f"--shape must name one of {', '.join(known_shapes())}, or model.path a model"
            raise ConfigError(f"{rule}: the recipe leaves it to you")
        return resolve(single(recipe, [*overrides, *_left_open(first, folder)]))


def known_shapes() -> list[str]:
    return sorted(path.name for path in SHAPES.iterdir() if path.is_dir())


def shape_folder(name: str) -> str:
    """The folder of a shape that is shipped, which holds a config.json and no weights.

    Raises:
        ConfigError: there is none of that name.
    """
    known = known_shapes()
    if name not in known:
        raise ConfigError(f"--shape must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return str(SHAPES / name)


def _left_open(composed: DictConfig, shape: str | None) -> list[str]:
    """Overrides for what the recipe leaves to its user and a plan can do without, or takes from the shape."""
    given: dict[str, Any] = {}
    if shape is not None:
        if "model" in composed:
            given["model.path"] = shape
        scorers = (f"reward.{key}" for key in ("path", "function", "models"))
        if "reward" in composed and not any(_is_set(composed, key) for key in scorers):
            given["reward.path"] = shape
    is_toy = OmegaConf.select(composed, "data.format") is Format.toy
    if "data" in composed and not _is_set(composed, "data.train.path") and not is_toy:
        given["data.train.path"] = ROWS
    return [f"{key}='{value}'" for key, value in given.items()]


def _shape_of_preset(composed: DictConfig) -> str | None:
    """That of the model which a preset of the package names (model=llama-3-8b), where the run has it: nothing is asked
    of the hub, on which it may be gated."""
    folder = SHAPES / str(composed.hydra.runtime.choices.get("model"))
    preset = shipped("conf") / "model" / f"{folder.name}.yaml"
    if not (folder.is_dir() and preset.is_file()):
        return None
    return str(folder) if composed.model.get("path") == OmegaConf.load(preset).path else None


def _lacks_model(composed: DictConfig) -> bool:
    return "model" in composed and not any(_is_set(composed, f"model.{key}") for key in ("path", "adapter", "init"))


def _is_set(composed: DictConfig, key: str) -> bool:
    return bool(OmegaConf.select(composed, key, throw_on_missing=False))

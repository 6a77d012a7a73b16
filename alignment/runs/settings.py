"""The settings of runs as their folders hold them, and which runs lie in a folder. Needs neither Hydra nor torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from alignment.config.errors import UserError
from alignment.runs.folder import RunFolder

DEPTH = 3  # folders: runs/RECIPE/SWEEP/JOB
APART = ("defaults", "output_dir", "log", "launch", "cluster", "inputs")  # what runs differ in without being others


def settings_of(folder: Path) -> dict[str, Any]:
    """The config of a run; nothing where it has none.

    Raises:
        UserError: config.yaml is not what a run writes.
    """
    path = RunFolder(folder).config
    try:
        settings = yaml.safe_load(path.read_text()) if path.exists() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold keys and values, got {settings!r}")
    return settings


def task_of(settings: dict[str, Any]) -> str:
    """As the recipe names it; empty where it does not."""
    defaults = settings.get("defaults")
    named = [each for each in defaults if isinstance(each, dict)] if isinstance(defaults, list) else []
    return next((str(each["task"]) for each in named if "task" in each), "")


def differing(found: list[dict[str, Any]]) -> dict[str, list[str]]:
    """dotted key -> its value in each of these settings, of the keys whose values are not all the same; `-` where one
    lacks it."""
    flat = [dict(_flat(settings, "")) for settings in found]
    keys = dict.fromkeys(key for each in flat for key in each if key.partition(".")[0] not in APART)
    columns = {key: [each.get(key, "-") for each in flat] for key in keys}
    return {key: values for key, values in columns.items() if len(set(values)) > 1}


def _flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def runs_in(folder: Path, depth: int = DEPTH) -> list[Path]:
    """The folder itself where it is a run's; the stages of a pipeline, the runs of a sweep and those below, in order.

    Raises:
        UserError: the folder cannot be read.
    """
    if RunFolder(folder).config.exists():
        stages = settings_of(folder).get("stages")
        if stages is None:
            return [folder]
        if not isinstance(stages, list) or not all(isinstance(stage, dict) and "name" in stage for stage in stages):
            raise UserError(
                f"{RunFolder(folder).config}: stages must be a list of mappings with a name, got {stages!r}"
            )
        return [folder / str(stage["name"]) for stage in stages]
    try:
        inner = sorted(folder.iterdir(), key=lambda path: (len(path.name), path.name))  # 10 comes after 9
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from error
    return [run for path in inner for run in _below(path, depth)]


def _below(path: Path, depth: int) -> list[Path]:
    """One that cannot be looked into counts as a run, so that it is told."""
    try:
        if not RunFolder(path).config.exists() and (depth <= 1 or path.name.startswith(".") or not path.is_dir()):
            return []
    except PermissionError:
        return [path]
    try:
        return runs_in(path, depth - 1)
    except UserError:
        return [path] if RunFolder(path).config.exists() else []

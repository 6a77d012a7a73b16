"""The settings of runs as their folders hold them, and which runs lie in a folder. Needs neither Hydra nor torch."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
    lacks it, and of an entry of a mapping that is empty in one."""
    flat = [dict(_flat(settings, "")) for settings in found]
    groups = {key.rpartition(".")[0] for each in flat for key in each}
    keys = dict.fromkeys(key for each in flat for key in each if key.partition(".")[0] not in APART)
    columns = {key: [each.get(key, "-") for each in flat] for key in keys if key not in groups}
    return {key: values for key, values in columns.items() if len(set(values)) > 1}


def empty_in_some(found: list[dict[str, Any]]) -> set[str]:
    """The mappings of dotted keys that have entries in some of these settings and none in all others, each of which has
    the mapping."""
    flat = [dict(_flat(settings, "")) for settings in found]
    groups = {key.rpartition(".")[0] for each in flat for key in each}
    return {
        group
        for group in groups
        if all(group in each or any(key.startswith(f"{group}.") for key in each) for each in flat)
        and any(group in each for each in flat)
    }


def _flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True, slots=True)
class Tree:
    """What lies in a folder, as far as it was looked into."""

    runs: list[Path]
    """Those that lie nearest first, of one depth by name."""
    beyond: list[Path]
    """Folders with folders in them, which were not looked into."""


def runs_in(folder: Path, depth: int = DEPTH) -> list[Path]:
    """As `tree_of`: its runs."""
    return tree_of(folder, depth).runs


def tree_of(folder: Path, depth: int = DEPTH) -> Tree:
    """The folder itself where it is a run's; the stages of a pipeline, the runs of a sweep and those below, so many
    folders deep.

    Raises:
        UserError: the folder cannot be read.
    """
    own = _stages(folder)
    if own is not None:
        return Tree(own, [])
    runs, level = list[Path](), [folder]
    for left in range(depth, 0, -1):
        inner = [path for each in level for path in _inside(each, is_first=left == depth)]
        level = []
        for path in inner:
            found = _runs_of(path)
            if found is None:
                level.append(path)
            else:
                runs += found
    return Tree(runs, [path for path in level if any(each.is_dir() for each in _inside(path, is_first=False))])


def _stages(folder: Path) -> list[Path] | None:
    """The folders of a pipeline's stages, without those that it leaves out and never ran, or the folder alone of
    another run; None: it is none.

    Raises:
        UserError: its config is damaged.
    """
    if not RunFolder(folder).config.exists():
        return None
    settings = settings_of(folder)
    stages = settings.get("stages")
    if stages is None:
        return [folder]
    if not isinstance(stages, list) or not all(isinstance(stage, dict) and "name" in stage for stage in stages):
        raise UserError(f"{RunFolder(folder).config}: stages must be a list of mappings with a name, got {stages!r}")
    only = settings.get("only")
    left_out = [
        str(stage["name"])
        for stage in stages
        if stage.get("enabled") is False or (isinstance(only, list) and only and stage["name"] not in only)
    ]
    paths = [folder / str(stage["name"]) for stage in stages]
    return [path for path in paths if path.name not in left_out or path.exists()]


def _runs_of(path: Path) -> list[Path] | None:
    """The same; one that cannot be looked into counts as a run, so that it is told."""
    try:
        return _stages(path)
    except (PermissionError, UserError):
        return [path]


def _inside(folder: Path, *, is_first: bool) -> list[Path]:
    """What may be a run or hold some, in the order that people count in: run2 before run10."""
    try:
        return sorted(filter(_may_hold, folder.iterdir()), key=lambda path: natural(path.name))
    except OSError as error:
        if not is_first:  # which is told among the others, or is none of ours
            return []
        raise UserError(f"{folder} cannot be read ({error.strerror})") from error


def _may_hold(path: Path) -> bool:
    try:
        return path.is_dir() and (not path.name.startswith(".") or RunFolder(path).config.exists())
    except PermissionError:
        return True


def natural(name: str) -> list[tuple[int, int, str]]:
    """To sort by: numbers in a name count as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]

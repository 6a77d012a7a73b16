"""What a config reads, files, folders, names on the hub and functions: found by walking it, files checked before
anything starts."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass
from difflib import get_close_matches
from importlib.machinery import PathFinder
from itertools import accumulate
from os.path import expanduser
from pathlib import Path
from typing import Any

from alignment.config.adapter import adapter_of, require_trainable
from alignment.config.backbone import require_shareable
from alignment.config.errors import ConfigError, error_prefix
from alignment.config.files import is_pattern, matched
from alignment.config.folders import MODEL_FILE, holds_model, model_of
from alignment.config.hub import HubName, Kind, hub_name, is_awaited, located
from alignment.config.model_kinds import require_language_model, require_reward_model, require_run_with_model
from alignment.config.online import PPOConfig
from alignment.config.ppo import Share
from alignment.config.renamed import function_now
from alignment.config.run import RunConfig
from alignment.user_error import nearest

ON_HUB = re.compile(r"https?://(?:huggingface\.co|hf\.co)/(?:datasets/)?([\w.-]+/[\w.-]+)")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def input_paths(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, path) of every field marked as an input and set."""
    yield from ((key, path) for key, path, _ in _marked(config, "input", prefix))


def input_places(config: Any, prefix: str = "") -> Iterator[tuple[str, str, Path]]:
    """(key, path, where it lies on this machine) of the same; a name on the hub lies where it was fetched."""
    for key, path, kind in _marked(config, "input", prefix):
        yield key, path, Path(path) if kind is None else located(path, kind)


def hub_names(config: Any, prefix: str = "") -> Iterator[tuple[str, str, HubName]]:
    """(key, path, name) of every input that is on the hub.

    Raises:
        ConfigError: one begins with hf:// and is no name.
    """
    for key, path, kind in _marked(config, "hub", prefix):
        with error_prefix(key):
            name = None if kind is None else hub_name(path, kind)
        if name is not None:
            yield key, path, name


def function_files(config: Any) -> Iterator[tuple[str, Path]]:
    """(key, file) of every function that is set, where its module has one; nothing is imported for it."""
    for key, function, _ in _marked(config, "function", ""):
        file = module_file(function.rpartition(".")[0])
        if file is not None:
            yield key, file


def expand_home(config: Any) -> None:
    """A `~` that begins a path stands for the home folder, as a shell has it where it comes first in a word."""
    _change(config, ("input", "place"), lambda path, _: expanduser(path))


def take_models(config: Any) -> None:
    """Where a model is asked for, a run's folder stands for its final one, and where an adapter is, for its adapter."""
    _change(config, ("of_run",), lambda path, _: path and model_of(path))  # "" is no folder, which is told later
    _change(config, ("adapter",), lambda path, _: path and adapter_of(path))


def set_names(config: Any, names: dict[tuple[Kind, str], str]) -> None:
    """Give inputs other names on the hub, by what they are of and called now."""
    _change(config, ("hub",), lambda path, kind: path if kind is None else names.get((kind, path), path))


def _change(config: Any, marks: tuple[str, ...], changed: Callable[[str, Kind | None], str]) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            _change(value, marks, changed)
        elif isinstance(value, dict) and all(is_dataclass(inner) for inner in value.values()):
            for inner in value.values():
                _change(inner, marks, changed)
        elif any(mark in field.metadata for mark in marks) and value is not None:
            kind = _kind(field)
            if isinstance(value, dict):
                setattr(config, field.name, {name: changed(path, kind) for name, path in value.items()})
            else:
                is_one = not isinstance(value, list)
                setattr(config, field.name, changed(value, kind) if is_one else [changed(path, kind) for path in value])


def _marked(config: Any, mark: str, prefix: str) -> Iterator[tuple[str, str, Kind | None]]:
    """(key, path, what it may be of a repository on the hub) of every field with the mark."""
    for field in fields(config):
        value = getattr(config, field.name)
        key = f"{prefix}{field.name}"
        if is_dataclass(value):
            yield from _marked(value, mark, f"{key}.")
        elif isinstance(value, dict) and all(is_dataclass(inner) for inner in value.values()):
            for name, inner in value.items():
                yield from _marked(inner, mark, f"{key}.{name}.")
        elif mark in field.metadata and value is not None and value not in field.metadata.get("names", ()):
            kind = _kind(field)
            yield from ((name, path, kind) for name, path in _paths(key, value, has_rows="data" in field.metadata))


def _kind(field: Field[Any]) -> Kind | None:
    return Kind(field.metadata["hub"]) if "hub" in field.metadata else None


def _paths(key: str, value: Any, has_rows: bool) -> Iterator[tuple[str, str]]:
    """(key, path) of each that a field names; several files of rows, in a list or by a pattern, have numbers."""
    if isinstance(value, dict):
        for name, path in value.items():
            yield from _paths(f"{key}.{name}", path, has_rows)
        return
    given: list[str] = value if isinstance(value, list) else [value]
    paths = [path for each in given for path in (matched(each) or [each])] if has_rows else given
    yield from ((key if len(paths) == 1 else f"{key}.{number}", path) for number, path in enumerate(paths))


def check_inputs(config: Any, prefix: str = "", *, but_within: str | None = None) -> None:
    """Raises:
    ConfigError: an input does not exist, a run that has left no model, or no model's folder, stands where a model's is
        asked for, or a function has another name now; names key and path. A name on the hub is looked for when it is
        pinned, and judged once it is fetched.

    Args:
        but_within: a folder whose files need not be there yet.
    """
    for key, path, _ in _marked(config, "function", prefix):
        if (now := function_now(path)) is not None:
            raise ConfigError(f"{key}: {path} is {now} now")
    for key, path, kind in _marked(config, "input", prefix):
        if not path:  # which would be the folder where the command runs
            raise ConfigError(f"{key} must name a file or a folder, got '' (null leaves it out, and . is the one here)")
        place = Path(path) if kind is None else located(path, kind)
        is_expected = but_within is not None and place.is_relative_to(but_within)
        with error_prefix(key):
            is_to_come = kind is not None and is_awaited(path, kind)
        if is_expected or is_to_come:
            continue
        if not place.exists():
            lacking = "no file matches" if is_pattern(path) and not matched(path) else "no such file or folder"
            if place.is_symlink():
                raise ConfigError(f"{key}: a link to {os.readlink(place)!r}, which is not there, got {path!r}")
            raise ConfigError(f"{key}: {lacking}, got {path!r}{_meant(path, kind)}")
        if not (place.is_file() or place.is_dir()):
            rule = f"{key} must be a file or a folder, which are read more than once (not a pipe or a device)"
            raise ConfigError(f"{rule}, got {path!r}")
        if key.startswith("runs."):
            require_run_with_model(key, path, place)
        elif kind is Kind.model:
            _require_model(key, path, place)
    _check_kinds(config, prefix, but_within)


def _check_kinds(config: Any, prefix: str, but_within: str | None) -> None:
    """That a reward model is given where one scores, a language model where one replies, an adapter to train on."""
    asked = {"language_model": require_language_model, "reward_model": require_reward_model}
    asked["adapter"] = require_trainable
    found = [(mark, key, path) for mark in asked for key, path, _ in _marked(config, mark, prefix)]
    if isinstance(config, RunConfig) and config.is_policy:
        found += [("language_model", key, path) for key, path in input_paths(config) if key == "model.path"]
    for mark, key, path in found:
        place = located(path)
        is_expected = but_within is not None and place.is_relative_to(but_within)
        if not is_expected and place.is_dir() and not is_awaited(path, Kind.model):
            inside = place / "model"
            asked[mark](key, inside if key.startswith("runs.") and inside.is_dir() else place)
            if mark == "reward_model" and isinstance(config, PPOConfig) and config.roles.share is Share.lora:
                require_shareable(key, place, config.model)


def _meant(path: str, kind: Kind | None) -> str:
    """What is near a path that leads to nothing."""
    if kind is not None and (page := ON_HUB.match(path)) is not None:
        return f" (a page of the hub: its name is {page[1]})"
    if ADDRESS.match(path) is not None:
        name = "org/name:split" if kind is Kind.data else "org/name"
        return f" (an address is not fetched: download it and name the file or folder; on the hub it is {name})"
    folder = Path(path).expanduser().parent
    there = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    alike = [name for name in sorted(there) if get_close_matches(Path(path).stem, [Path(name).stem])]
    near = nearest(Path(path).name, alike)  # the endings of files are alike in any case
    if not near and kind is Kind.model and re.fullmatch(r"[\w.-]+", path):
        return f" (on the hub it is org/name, or hf://{path})"
    return near


def _require_model(key: str, path: str, place: Path) -> None:
    if not place.is_dir():
        gguf = "; a GGUF file has weights that are not trained, take the model that it was made of"
        way = gguf if place.suffix == ".gguf" else ""
        raise ConfigError(f"{key} must be a model's folder, got the file {str(place)!r}{way}")
    if (place / "config.yaml").is_file():
        require_run_with_model(key, path, place)
    if not holds_model(place):
        lacks = f"{key}: no {MODEL_FILE} in {str(place)!r}, which a model's folder holds"
        inner = sorted(file.parent.name for file in place.glob(f"*/{MODEL_FILE}"))
        raise ConfigError(f"{lacks}{f'; {place / inner[0]} does' if inner else ''}")


def module_file(module: str) -> Path | None:
    """Where the source of a module lies, if it has one; nothing is imported for it."""
    folders, spec = [str(Path.cwd()), *sys.path], None
    for name in accumulate(module.split("."), "{}.{}".format):
        spec = PathFinder.find_spec(name, folders)
        folders = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin is not None else None

"""What a config reads, files, folders and functions: found by walking it, files checked before anything starts."""

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.machinery import PathFinder
from itertools import accumulate
from os.path import expanduser
from pathlib import Path
from typing import Any

from alignment.config.errors import ConfigError
from alignment.config.files import is_pattern, matched
from alignment.config.folders import ADAPTER_FILE, MODEL_FILE
from alignment.config.renamed import function_now

OF_RUNS = ("inputs", "runs", "curves")  # keys whose folders may be those of runs


def input_paths(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, path) of every field marked as an input and set."""
    yield from _marked(config, "input", prefix)


def function_files(config: Any) -> Iterator[tuple[str, Path]]:
    """(key, file) of every function that is set, where its module has one; nothing is imported for it."""
    for key, function in _marked(config, "function", ""):
        file = module_file(function.rpartition(".")[0])
        if file is not None:
            yield key, file


def expand_home(config: Any) -> None:
    """A `~` that begins a path stands for the home folder, as a shell has it where it comes first in a word."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            expand_home(value)
        elif isinstance(value, dict) and all(is_dataclass(inner) for inner in value.values()):
            for inner in value.values():
                expand_home(inner)
        elif ("input" in field.metadata or "place" in field.metadata) and value is not None:
            setattr(config, field.name, _at_home(value))


def _at_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: expanduser(path) for name, path in value.items()}
    return [expanduser(path) for path in value] if isinstance(value, list) else expanduser(value)


def _marked(config: Any, mark: str, prefix: str) -> Iterator[tuple[str, str]]:
    for field in fields(config):
        value = getattr(config, field.name)
        key = f"{prefix}{field.name}"
        if is_dataclass(value):
            yield from _marked(value, mark, f"{key}.")
        elif isinstance(value, dict) and all(is_dataclass(inner) for inner in value.values()):
            for name, inner in value.items():
                yield from _marked(inner, mark, f"{key}.{name}.")
        elif mark in field.metadata and value is not None:
            yield from _paths(key, value, has_rows="data" in field.metadata)


def _paths(key: str, value: Any, has_rows: bool) -> Iterator[tuple[str, str]]:
    """(key, path) of each that a field names; several files of rows, in a list or by a pattern, have numbers."""
    if isinstance(value, dict):
        for name, path in value.items():
            yield from _paths(f"{key}.{name}", path, has_rows)
        return
    given: list[str] = value if isinstance(value, list) else [value]
    paths = [path for each in given for path in (matched(each) or [each])] if has_rows else given
    yield from ((key if len(paths) == 1 else f"{key}.{number}", path) for number, path in enumerate(paths))


def check_inputs(config: Any) -> None:
    """Raises:
    ConfigError: an input does not exist, a run's folder stands where a model's is asked for, or a function has another
        name now; names key and path.
    """
    for key, path in _marked(config, "function", ""):
        if (now := function_now(path)) is not None:
            raise ConfigError(f"{key}: {path} is {now} now")
    for key, path in input_paths(config):
        check_input(key, path)


def check_input(key: str, path: str) -> None:
    """Raises:
    ConfigError: it does not exist, or is a run's folder where a model's is asked for.
    """
    if not Path(path).exists():
        lacking = "no file matches" if is_pattern(path) and not matched(path) else "no such file or folder"
        raise ConfigError(f"{key}: {lacking}, got {path!r}")
    if key.partition(".")[0] not in OF_RUNS:
        _refuse_run(key, Path(path))


def _refuse_run(key: str, path: Path) -> None:
    model = path / "model"
    if (model / MODEL_FILE).is_file() and not any((path / file).is_file() for file in (MODEL_FILE, ADAPTER_FILE)):
        raise ConfigError(f"{key}: this is a run's folder, and its model is {str(model)!r}, got {str(path)!r}")


def module_file(module: str) -> Path | None:
    """Where the source of a module lies, if it has one; nothing is imported for it."""
    folders, spec = [str(Path.cwd()), *sys.path], None
    for name in accumulate(module.split("."), "{}.{}".format):
        spec = PathFinder.find_spec(name, folders)
        folders = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin is not None else None

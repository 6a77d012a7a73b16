"""What a run is of: its settings, what its inputs hold, the code of its functions.

Two commands with the same fingerprint are one run. This module alone says what counts.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment.config.errors import ConfigError
from alignment.config.folders import base_of
from alignment.config.inputs import function_files, input_paths, module_file
from alignment.config.outside import is_outside
from alignment.config.run import RunConfig
from alignment.config.tasks import task_name
from alignment.runs.contents import digest, run_digest
from alignment.runs.folder import RunFolder

UNMARKED = ("output_dir", "log", "checkpoint", "reference", "launch", "cluster")
DIVISION = {  # keys that divide the same work up in another way: a run goes on with others than it began with
    "batch": ("max_tokens",),
    "distributed": ("zero", "offload_optimizer", "offload_param", "nvme_path", "deepspeed_config", "timeout_minutes"),
    "generation": ("batch_size", "gather", "vllm"),
    "model": ("gradient_checkpointing",),
}
LENGTH = ("train.max_steps", "train.epochs")  # a run may be made longer
CONTENTS, CODE = "the contents of ", "the code of "
SHOWN = 3  # differences that are named


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """By what name, which value: keys of the config, contents of inputs, code of functions, the package's version."""

    entries: tuple[tuple[str, str], ...]
    """Sorted; the values as JSON."""

    def length(self) -> dict[str, float]:
        """The one of LENGTH's keys that is set; none for a run that does not train."""
        found = {key: json.loads(value) for key, value in self.entries if key in LENGTH}
        return {key: value for key, value in found.items() if value is not None}

    def differences(self, earlier: "Fingerprint") -> str:
        """What has changed since, but for the length; empty where nothing has."""
        was, now = dict(earlier.entries), dict(self.entries)
        changed = [key for key in sorted(was | now) if key not in LENGTH and was.get(key) != now.get(key)]
        # A path stands by its contents where it is set, and by itself, as null, where it is not; a function by both.
        twice = {key for key in changed if f"{CONTENTS}{key}" in changed}
        twice |= {f"{CODE}{key}" for key in changed}
        changed = [key for key in changed if key not in twice]
        named = [_difference(key, was.get(key), now.get(key)) for key in changed[:SHOWN]]
        more = len(changed) - len(named)
        return ", ".join([*named, *([f"{more} more"] if more else [])])


def fingerprint(config: RunConfig) -> Fingerprint:
    """An input counts by what it holds, not by where it lies or when it was written.

    Raises:
        ConfigError: an input cannot be read.
    """
    read = {key: path for key, path in inputs(config) if not key.startswith("distributed.")}
    named = read.keys() | {key.rpartition(".")[0] for key in read}  # of several files each by its number
    settings = {key: value for key, value in _flat(asdict(config), "") if key not in named}
    entries: dict[str, Any] = {key: value for key, value in settings.items() if not _is_unmarked(key)}
    for key, path in read.items():
        entries[f"{CONTENTS}{key}"] = _contents(key, path)
    for key, file in function_files(config):
        entries[f"{CODE}{key}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    task = task_name(config)
    if is_outside(task):
        entries["task"] = task
        source = module_file(task)
        if source is not None:
            entries[f"{CODE}task"] = hashlib.sha256(source.read_bytes()).hexdigest()
    entries["version"] = version("preference-alignment")
    return Fingerprint(tuple(sorted((key, json.dumps(value, sort_keys=True)) for key, value in entries.items())))


def inputs(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """(key, path) of every file and folder that the run reads, and of what is read behind an adapter's folder.

    Raises:
        ConfigError: what should name an adapter's base is cut or damaged.
    """
    for key, path in input_paths(config):
        yield from [(key, Path(path)), *_bases(key, Path(path))]


def _is_unmarked(key: str) -> bool:
    part, _, rest = key.partition(".")
    return part in UNMARKED or rest.partition(".")[0] in DIVISION.get(part, ())


def _flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _bases(key: str, path: Path) -> Iterator[tuple[str, Path]]:
    """What is read behind an input that is an adapter's folder: its base, and that one's where it is one itself."""
    folder, seen = RunFolder(path).model if RunFolder(path).is_run() else path, set[Path]()
    while folder not in seen and (base := base_of(folder, key)) is not None:
        seen.add(folder)
        key, folder = f"the base of {key}", base
        yield key, folder


def _contents(key: str, path: Path) -> str:
    """Of an input, with the ending of its name, which says how it is read."""
    try:
        plain = path.name.removesuffix(".gz").removesuffix(".zst")
        ending = "" if path.is_dir() else Path(plain).suffix + path.suffix
        return (run_digest(path) if RunFolder(path).is_run() else digest(path)) + ending
    except OSError as error:
        raise ConfigError(f"{key} cannot be read ({error.strerror}: {error.filename}), got {str(path)!r}") from error


def _difference(key: str, was: str | None, now: str | None) -> str:
    if key.startswith((CONTENTS, CODE)):
        if was is not None and now is not None:
            return f"{key} changed"
        return f"{key.removeprefix(CONTENTS).removeprefix(CODE)} was {'not ' if was is None else ''}set"
    return f"{key} was {'absent' if was is None else was} and is {'absent' if now is None else now}"

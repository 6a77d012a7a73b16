"""What a run is of: its settings, what its inputs hold, the code of its functions.

Two commands with the same fingerprint are one run. This module alone says what counts.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

from alignment.config.adapter import KEY as ADAPTER
from alignment.config.errors import ConfigError
from alignment.config.folders import base_of
from alignment.config.hub import reading_at
from alignment.config.inputs import function_files, input_places, module_file
from alignment.config.optimizer import CONSTANTS, OptimizerName
from alignment.config.outside import is_outside
from alignment.config.renamed import key_now
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import task_name
from alignment.runs.contents import digest, run_digest
from alignment.runs.folder import RunFolder
from alignment.runs.steering import LENGTH, Group, group_of, is_noted

CONTENTS, CODE, BASE = "the contents of ", "the code of ", "the base of "
SHOWN = 3  # differences that are named


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of a run's mark that was another, or none; the values as JSON, None where there is none."""

    name: str
    before: str | None
    after: str | None
    group: Group

    @property
    def key(self) -> str:
        """Of the config."""
        return key_of(self.name)

    def __str__(self) -> str:
        if self.name.startswith((CONTENTS, CODE)):
            if self.before is not None and self.after is not None:
                return f"{self.name} changed"
            return (
                f"{self.name.removeprefix(CONTENTS).removeprefix(CODE)} was {'not ' if self.before is None else ''}set"
            )
        before, after = ("absent" if value is None else value for value in (self.before, self.after))
        return f"{self.name} was {before} and is {after}"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """By what name, which value: keys of the config, contents of inputs, code of functions, the package's version."""

    entries: tuple[tuple[str, str], ...]
    """Sorted; the values as JSON."""
    defaults: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)
    """What keys are that an earlier version did not have."""

    def length(self) -> dict[str, float]:
        """The one of LENGTH's keys that is set; none for a run that does not train."""
        found = {key: json.loads(value) for key, value in self.entries if key in LENGTH}
        return {key: value for key, value in found.items() if value is not None}

    def has_best(self) -> bool:
        """Whether evaluations choose the run's model."""
        null = json.dumps(None)
        return any(dict(self.entries).get(key, null) != null for key in ("train.best.metric", "kl.limit"))

    def changes(self, earlier: "Fingerprint") -> list[Change]:
        """What has changed since, but for the length and what is free. A key that there was not counts as what it is
        by default."""
        now, defaults, has_best = dict(self.entries), dict(self.defaults), self.has_best()
        parts = {key.partition(".")[0] for key in now}
        was = {key if key in now else key_now(key, parts) or key: value for key, value in earlier.entries}
        changed: dict[str, Change] = {}
        for name in sorted(was | now):
            group = group_of(key_of(name), has_best=has_best)
            before, after = was.get(name, defaults.get(name)), now.get(name)
            is_unread = all(_is_of_no_adapter(name, entries) for entries in (was, now))
            if group not in (Group.length, Group.free) and before != after and not is_unread:
                changed[name] = Change(name, before, after, group)
        # A path stands by its contents where it is set, and by itself, as null, where it is not; a function by both.
        twice = {name for name in changed if f"{CONTENTS}{name}" in changed}
        twice |= {f"{CODE}{name}" for name in changed}
        return [change for name, change in changed.items() if name not in twice]

    def is_same(self, other: "Fingerprint | None") -> bool:
        """Whether it is the same run, of the same length."""
        return other is not None and self.length() == other.length() and not self.changes(other)


def _is_of_no_adapter(name: str, entries: Mapping[str, str]) -> bool:
    """Whether it is a shape of adapters where there are none, whose default may have been another."""
    model, of_lora, key = name.partition(".lora.")
    return bool(of_lora) and key != "rank" and entries.get(f"{model}.lora.rank") == json.dumps(0)


def shown(changes: list[Change]) -> str:
    """The first few of them, and how many there are beside."""
    more = len(changes) - SHOWN
    return ", ".join([*map(str, changes[:SHOWN]), *([f"{more} more"] if more > 0 else [])])


def key_of(name: str) -> str:
    """The key of the config that an entry is of."""
    key = name.removeprefix(CONTENTS).removeprefix(CODE)
    while key.startswith(BASE):
        key = key.removeprefix(BASE)
    return key


def fingerprint(config: RunConfig) -> Fingerprint:
    """An input counts by what it holds, not by where it lies or when it was written.

    Raises:
        ConfigError: an input cannot be read.
    """
    read = {key: path for key, path in inputs(config) if not key.startswith("distributed.")}
    named = read.keys() | {key.rpartition(".")[0] for key in read}  # of several files each by its number
    settings = {key: value for key, value in flat(asdict(config), "") if key not in named}
    earlier = dict(defaults(type(config), ""))
    if isinstance(config, TrainingConfig):  # whose constants count as what they come to
        settings |= flat({"train": asdict(config.train.constants)}, "")
        earlier |= flat({"train": asdict(CONSTANTS[OptimizerName.adamw])}, "")
    entries: dict[str, Any] = {key: value for key, value in settings.items() if is_noted(key)}
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
    return Fingerprint(_as_json(entries), _as_json(earlier))


def inputs(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """(key, path) of every file and folder that the run reads, and of what is read behind an adapter's folder.

    Raises:
        ConfigError: what should name an adapter's base is cut or damaged.
    """
    places = [(key, place) for key, _, place in input_places(config)]
    for key, place in places:
        with reading_at(config.commits):
            bases = [] if key == ADAPTER and "model.path" in dict(places) else list(_bases(key, place))
        yield from [(key, place), *bases]


def _as_json(entries: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, json.dumps(value, sort_keys=True)) for key, value in entries.items()))


def defaults(root: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a config, as it is where nobody has set it."""
    hints = get_type_hints(root)
    for each in fields(root):
        if is_dataclass(hints[each.name]):
            yield from defaults(hints[each.name], f"{prefix}{each.name}.")
        elif each.default_factory is not MISSING:
            yield f"{prefix}{each.name}", each.default_factory()
        else:
            yield f"{prefix}{each.name}", each.default


def flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _bases(key: str, path: Path) -> Iterator[tuple[str, Path]]:
    """What is read behind an input that is an adapter's folder: its base, and that one's where it is one itself."""
    folder, seen = RunFolder(path).model if RunFolder(path).is_run() else path, set[Path]()
    while folder not in seen and (base := base_of(folder, key)) is not None:
        seen.add(folder)
        key, folder = f"{BASE}{key}", base
        yield key, folder


def _contents(key: str, path: Path) -> str:
    """Of an input, with the ending of its name, which says how it is read."""
    try:
        plain = path.name.removesuffix(".gz").removesuffix(".zst")
        ending = "" if path.is_dir() else Path(plain).suffix + path.suffix
        return (run_digest(path) if RunFolder(path).is_run() else digest(path)) + ending
    except OSError as error:
        raise ConfigError(f"{key} cannot be read ({error.strerror}: {error.filename}), got {str(path)!r}") from error

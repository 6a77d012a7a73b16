"""The names on the hub in a config, each given the commit that it stands for when the run begins, and fetched."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from alignment.config.adapter import settled
from alignment.config.errors import ConfigError
from alignment.config.hub import HubName, Kind, is_fetched, read_at
from alignment.config.inputs import check_inputs, hub_names, set_names
from alignment.config.model import ModelConfig
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import PipelineConfig
from alignment.hub.adapter import entry_of_base, places_with_bases, with_base, with_path
from alignment.hub.commits import Commits, kept
from alignment.hub.fetch import base_commits, base_name, fetch, fetch_bases
from alignment.preempt import is_main

Run = TypeVar("Run", bound=RunConfig)


@dataclass(frozen=True, slots=True)
class Pins:
    """What the main process has found the names in a config to stand for."""

    names: list[str]
    """In the order of the config's keys."""
    commits: dict[str, str]
    """Of the bases of adapters."""
    bases: dict[str, list[str]]
    """Key -> the commits of the base of the adapter there, and of that one's."""
    path: str | None
    """Of the base of an adapter that is trained on, where it alone names it."""


def pinned(
    config: Run, *, folder: str | None = None, commits: Commits | None = None, but_within: str | None = None
) -> Run:
    """The same run on commits, `org/name@COMMIT`, whose files are on this machine then; its inputs are found good,
    those that are here before anything is fetched. Of several processes the main one alone asks which commit a name
    is at; the others have its answer by `given_pins`.

    Args:
        folder: the run's. None: `output_dir`.
        commits: those that are known beside the config's own, to which what is asked for comes. None: those that the
            folder has kept.
        but_within: a folder whose paths are never names: those of a pipeline's stages, which make them.

    Raises:
        ConfigError: a name is not to be had; and as `check_inputs`.
    """
    check_inputs(config, but_within=but_within)
    if not is_main() or isinstance(config, PipelineConfig):  # whose stages are pinned, each for itself
        read_at(config.commits)
        return config
    commits = kept(folder or config.output_dir) if commits is None else commits
    ask(config, commits, but_within=but_within)  # for all before the first is fetched, which may take long
    names = {(name.kind, path): str(fetch(name, key, path, commits)) for key, path, name in _wanted(config, but_within)}
    named = _named(config, names)
    config, bases = with_base(named, commits), dict[str, str]()
    for key, place in places_with_bases(config):
        bases |= fetch_bases(place, key, commits)
    entry = entry_of_base(config)  # of an adapter: what has been its base is one of its own from here on
    if entry is not None and (entry in config.commits or config is not named):
        bases[entry] = commits.known[entry]
        commits.read.add(entry)
    for entry in config.commits.keys() - commits.read:
        raise ConfigError(f"commits.{entry} is of a name that nothing reads; leave it out")
    config = replace(config, commits=bases)
    read_at(bases)
    if names or bases:
        check_inputs(config, but_within=but_within)
    return settled(config)


def fetch_model(config: RunConfig, model: ModelConfig) -> None:
    """The model of a config that a run has written, and all that lies behind it, is here then as that run has read it.

    Raises:
        ConfigError: as `fetch`.
    """
    commits = Commits(dict(config.commits))
    for key, path, name in hub_names(model, "model."):
        fetch(name, key, path, commits)
    for key, place in places_with_bases(model, "model."):
        fetch_bases(place, key, commits)
    read_at(commits.known)


def ask(config: RunConfig, commits: Commits, *, but_within: str | None = None) -> None:
    """Which commits the names in a config stand for, and those of the bases of adapters that are here.

    Raises:
        ConfigError: as `Commits.give` and `Commits.at`.
    """
    commits.give(config.commits)
    for key, path, name in _wanted(config, but_within):
        if not is_fetched(name):
            commits.at(name, key, path)
    for key, place in places_with_bases(config):
        base = base_name(place, key)
        if base is not None:
            commits.at(base, f"the base of {key}", str(base))


def pins_of(config: RunConfig) -> Pins:
    """Those of a config that is pinned."""
    names = [str(name) for _, _, name in hub_names(config)]
    bases = {key: base_commits(place, key) for key, place in places_with_bases(config)}
    return Pins(names, config.commits, bases, config.model.path if isinstance(config, TrainingConfig) else None)


def given_pins(config: Run, pins: Pins) -> Run:
    """The same run on the commits that the main process has found; fetched, where this one's machine lacks them.

    Raises:
        ConfigError: they are not to be had, or an adapter of the hub lies here on another base than there.
    """
    config = with_path(config, pins.path)
    names = {(name.kind, path): pin for (_, path, name), pin in zip(hub_names(config), pins.names, strict=True)}
    config, commits = replace(_named(config, names), commits=pins.commits), Commits(dict(pins.commits))
    read_at(pins.commits)
    for key, path, name in hub_names(config):
        fetch(name, key, path, commits)
    for key, place in places_with_bases(config):
        fetch_bases(place, key, commits)
        if (here := base_commits(place, key)) != pins.bases.get(key, []):
            rule = f"{key}: the base of this adapter must be the same for all processes, at {pins.bases.get(key, [])}"
            raise ConfigError(f"{rule}, got {here} in the folder {str(place)!r}, which is fetched anew once it is gone")
    return settled(config)


def _named(config: Run, names: dict[tuple[Kind, str], str]) -> Run:
    if not names:
        return config
    config = deepcopy(config)
    set_names(config, names)
    return config


def _wanted(config: RunConfig, but_within: str | None) -> Iterator[tuple[str, str, HubName]]:
    for key, path, name in hub_names(config):
        if but_within is None or not Path(path).is_relative_to(but_within):
            yield key, path, name

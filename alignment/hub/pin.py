"""The names on the hub in a config, each given the commit that it stands for when the run begins, and fetched."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from alignment.config.errors import ConfigError
from alignment.config.hub import HubName, Kind, is_fetched, pinned_name
from alignment.config.inputs import check_inputs, hub_names, input_places, set_names
from alignment.config.run import RunConfig
from alignment.config.tasks import PipelineConfig
from alignment.hub.ask import repository
from alignment.hub.fetch import base_commits, fetch, fetch_base
from alignment.preempt import is_main

Run = TypeVar("Run", bound=RunConfig)


@dataclass(frozen=True, slots=True)
class Pins:
    """What the main process has found the names in a config to stand for."""

    names: list[str]
    """In the order of the config's keys."""
    bases: dict[str, list[str]]
    """Key -> the commits of the base of the adapter there, and of that one's."""


def pinned(config: Run, *, but_within: str | None = None) -> Run:
    """The same run on commits, `org/name@COMMIT`, whose files are on this machine then; its inputs are found good,
    those that are here before anything is fetched. Of several processes the main one alone asks which commit a name
    is at; the others have its answer by `given_pins`.

    Args:
        but_within: a folder whose paths are never names: those of a pipeline's stages, which make them.

    Raises:
        ConfigError: a name is not to be had; and as `check_inputs`.
    """
    check_inputs(config, but_within=but_within)
    if not is_main() or isinstance(config, PipelineConfig):  # whose stages are pinned, each for itself
        return config
    for key, path, name in _wanted(config, but_within):
        if not is_fetched(name):
            repository(name, key, path)  # all are asked for before the first is fetched, which may take long
    names = {(name.kind, path): str(fetch(name, key, path)) for key, path, name in _wanted(config, but_within)}
    config = _named(config, names)
    for key, _, place in input_places(config):
        fetch_base(place, key)
    if names:
        check_inputs(config, but_within=but_within)
    return config


def pins_of(config: RunConfig) -> Pins:
    """Those of a config that is pinned."""
    names = [str(name) for _, _, name in hub_names(config)]
    return Pins(names, {key: base_commits(place, key) for key, _, place in input_places(config)})


def given_pins(config: Run, pins: Pins) -> Run:
    """The same run on the commits that the main process has found; fetched, where this one's machine lacks them.

    Raises:
        ConfigError: they are not to be had, or an adapter of the hub lies here on another base than there.
    """
    names = {(name.kind, path): pin for (_, path, name), pin in zip(hub_names(config), pins.names, strict=True)}
    config = _named(config, names)
    for key, path, name in hub_names(config):
        fetch(name, key, path, pins.bases.get(key, ()))
    for key, path, place in input_places(config):
        bases = pins.bases.get(key, [])
        fetch_base(place, key, bases if pinned_name(path) is None else ())
        if (here := base_commits(place, key)) != bases:
            rule = f"{key}: the base of this adapter must be the same for all processes, at {bases}"
            raise ConfigError(f"{rule}, got {here} in the folder {str(place)!r}, which is fetched anew once it is gone")
    return config


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

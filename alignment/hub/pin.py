"""The names on the hub in a config, each given the commit that it stands for when the run begins, and fetched."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import TypeVar

from alignment.config.hub import HubName, Kind
from alignment.config.inputs import hub_names, input_places, set_names
from alignment.config.run import RunConfig
from alignment.config.tasks import PipelineConfig
from alignment.hub.ask import repository
from alignment.hub.fetch import fetch, fetch_base, is_fetched
from alignment.preempt import is_main

Run = TypeVar("Run", bound=RunConfig)


def pinned(config: Run, *, but_within: str | None = None) -> Run:
    """The same run on commits, `org/name@COMMIT`, whose files are on this machine then. Of several processes the main
    one alone asks which commit a name is at; the others have its answer by `given_pins`.

    Args:
        but_within: a folder whose paths are never names: those of a pipeline's stages, which make them.

    Raises:
        ConfigError: a name is not to be had.
    """
    if not is_main() or isinstance(config, PipelineConfig):  # whose stages are pinned, each for itself
        return config
    for key, path, name in _wanted(config, but_within):
        if not is_fetched(name):
            repository(name, key, path)  # all are asked for before the first is fetched, which may take long
    names = {(name.kind, path): str(fetch(name, key, path)) for key, path, name in _wanted(config, but_within)}
    config = _named(config, names)
    for key, _, place in input_places(config):
        fetch_base(place, key)
    return config


def pins_of(config: RunConfig) -> list[str]:
    """The names in a config that is pinned, in the order of its keys."""
    return [str(name) for _, _, name in hub_names(config)]


def given_pins(config: Run, pins: list[str]) -> Run:
    """The same run on the commits that the main process has found; fetched, where this one's machine lacks them."""
    names = {(name.kind, path): pin for (_, path, name), pin in zip(hub_names(config), pins, strict=True)}
    config = _named(config, names)
    for key, path, name in hub_names(config):
        fetch(name, key, path)
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

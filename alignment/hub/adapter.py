"""The base of an adapter that is trained on: what `model.path` names, and where that is null, what the adapter does."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from alignment.config.adapter import KEY
from alignment.config.hub import HubName, located
from alignment.config.inputs import input_places
from alignment.config.run import RunConfig, TrainingConfig
from alignment.hub.commits import Commits
from alignment.hub.fetch import base_name, fetch_base

Run = TypeVar("Run", bound=RunConfig)


def with_base(config: Run, commits: Commits) -> Run:
    """The run with `model.path`, where the adapter alone names it, as a name on the hub that is pinned and fetched.

    Raises:
        ConfigError: as `fetch`.
    """
    name = _named(config)
    if name is None or not isinstance(config, TrainingConfig) or config.model.path is not None:
        return config
    revision = fetch_base(located(str(config.model.adapter)), KEY, commits)
    return with_path(config, str(replace(name, revision=revision)))


def with_path(config: Run, path: str | None) -> Run:
    """The run with that base, where an adapter names it alone."""
    if not isinstance(config, TrainingConfig) or config.model.adapter is None or config.model.path is not None:
        return config
    on_base: Run = replace(config, model=replace(config.model, path=path))
    return on_base


def entry_of_base(config: RunConfig) -> str | None:
    """By which entry of `commits` the adapter's own base is found, where its name has no commit."""
    name = _named(config)
    return None if name is None or name.has_commit else name.entry


def places_with_bases(config: Any, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """(key, place) of every input behind which a base may lie; of the adapter whose base `model.path` is, none is read.

    Args:
        config, prefix: as of `input_places`.
    """
    found = [(key, place) for key, _, place in input_places(config, prefix)]
    has_path = any(key == "model.path" for key, _ in found)
    yield from ((key, place) for key, place in found if key != KEY or not has_path)


def _named(config: RunConfig) -> HubName | None:
    if not isinstance(config, TrainingConfig) or config.model.adapter is None:
        return None
    return base_name(located(config.model.adapter), KEY)

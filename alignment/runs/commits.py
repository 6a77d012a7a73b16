"""The commits of names on the hub that a run was begun with, against those that the same names are at now."""

from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from alignment.config.errors import ConfigError
from alignment.config.hub import HubName
from alignment.config.inputs import hub_names
from alignment.config.run import RunConfig
from alignment.runs.fingerprint import Change
from alignment.runs.settings import settings_of
from alignment.runs.steering import Group


def require_same_commits(written: Path, config: RunConfig, changes: list[Change]) -> None:
    """Raises:
    ConfigError: an input of the run, which has changed, has another commit than in the folder's config.yaml, as a name
        without one has when the repository has changed since; says both, and the two ways out.
    """
    keys = {change.key for change in changes if change.group is Group.fixed}
    for key, was, now in moved(written, config):
        if key not in keys:
            continue
        earlier, new = replace(now, revision=was), replace(now, revision=None)
        rule = f"output_dir holds a run that began with {key}={earlier}, and {new} is at {now.revision} now"
        way = f"{key}={earlier} goes on with it, another output_dir takes the newer one"
        raise ConfigError(f"{rule}: {way}, got {str(written.parent)!r}")


def moved(written: Path, config: RunConfig) -> list[tuple[str, str, HubName]]:
    """(key, commit there, name here) of every input whose commit is another.

    Raises:
        UserError: the config that was written is damaged.
    """
    named = list(hub_names(config))
    if not named or not written.is_file():
        return []
    earlier, found = OmegaConf.create(settings_of(written.parent)), []
    for key, _, name in named:
        was = OmegaConf.select(earlier, key)
        same, at, commit = str(was).rpartition("@")
        if at and same == str(replace(name, revision=None)) and commit != name.revision:
            found.append((key, commit, name))
    return found

"""Which commit each name on the hub stands for in a run: as its config has it, as its folder has kept it, or as the hub
says, which is asked once for a name however many keys and stages have it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from alignment.config.errors import ConfigError, error_prefix
from alignment.config.hub import HubName, require_commits
from alignment.hub.ask import SHOWN, repository
from alignment.runs.folder import RunFolder
from alignment.runs.settings import settings_of
from alignment.terminal import say_once


@dataclass(slots=True)
class Commits:
    known: dict[str, str] = field(default_factory=dict)
    """Entry -> commit; what is asked for comes to it."""
    kept: set[str] = field(default_factory=set)
    """The entries that a run's folder has kept, and nobody has given."""
    said: dict[str, str] = field(default_factory=dict)
    """Entry -> what is said behind its commit, for those that nobody has given."""
    read: set[str] = field(default_factory=set)
    """The entries that were asked for here."""

    def give(self, given: Mapping[str, str]) -> None:
        """Those of a config, which count more than what was kept.

        Raises:
            ConfigError: another stage of the same pipeline has given another one.
        """
        for entry, commit in given.items():
            if entry in self.kept:
                self.kept.discard(entry)
                self.said.pop(entry)
                self.known[entry] = commit
            elif (before := self.known.setdefault(entry, commit)) != commit:
                raise ConfigError(f"commits.{entry} must be the same for all stages, {before}, got {commit!r}")

    def at(self, name: HubName, key: str, path: str) -> HubName:
        """The name with its commit. key, path: what the user has set to what.

        Raises:
            ConfigError: as `repository`.
        """
        if name.has_commit:
            return name
        self.read.add(name.entry)
        if name.entry not in self.known:
            found = repository(name, key, path)
            self.known[name.entry] = found.commit
            if found.is_online:
                self.said[name.entry] = f" ({name.revision})" if name.revision else ""
        if name.entry in self.said:
            whose = "" if key.startswith("runs.") else f"{key}: "  # of an evaluation, whose names for them are its own
            say_once(f"{whose}{name.repo} is at {self.known[name.entry][:SHOWN]}{self.said[name.entry]}")
        return replace(name, revision=self.known[name.entry])


def kept(folder: str) -> Commits:
    """Those that a run has written into its folder, so that whoever goes on there reads the same.

    Raises:
        UserError: its config is damaged.
    """
    file, found = RunFolder(folder).config, settings_of(Path(folder)).get("commits")
    if not isinstance(found, dict):
        return Commits()
    with error_prefix(str(file)):
        require_commits(found)
    return Commits(found, set(found), dict.fromkeys(found, f", as {file} has it"))

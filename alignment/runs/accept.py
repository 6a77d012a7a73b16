"""Whether a run goes on in its folder with settings that have changed: refused, or asked for by `resume.accept`."""

import json
from collections.abc import Iterable
from dataclasses import asdict

from alignment.config.checkpoint import Resume
from alignment.config.errors import ConfigError
from alignment.config.run import RunConfig, TrainingConfig
from alignment.runs.fingerprint import CODE, CONTENTS, Change, Fingerprint, flat, key_of, shown
from alignment.runs.folder import RunFolder
from alignment.runs.steering import Group, covers, group_of
from alignment.user_error import nearest

OTHER = "output_dir holds a run of another config or other inputs"
KEY = "resume.accept"


def accepted(folder: RunFolder, config: RunConfig, earlier: Fingerprint, mark: Fingerprint) -> list[Change]:
    """What has changed since the run in the folder was `earlier`, all of it asked for.

    Raises:
        ConfigError: it would be another run, a change is not asked for, or one that is asked for is none.
    """
    changes = mark.changes(earlier)
    asked = config.resume.accept if isinstance(config, TrainingConfig) else []
    _require_changeable(asked, config, mark)
    place = f"got {str(folder.path)!r}"
    fixed = [change for change in changes if change.group is Group.fixed or not isinstance(config, TrainingConfig)]
    if fixed and isinstance(config, TrainingConfig) and _is_empty(folder):
        raise ConfigError(
            f"{OTHER} ({shown(fixed)}), {place}; it has saved no step: without that folder one begins anew"
        )
    if fixed:
        raise ConfigError(f"{OTHER} ({shown(fixed)}), {place}; another output_dir keeps both, {_former(fixed)}")
    unasked = [change for change in changes if not any(covers(name, change.key) for name in asked)]
    if unasked:
        keys = ",".join(dict.fromkeys([*asked, *(change.key for change in unasked)]))
        ways = f"{KEY}=[{keys}] goes on with it, another output_dir keeps both, {_former(unasked)}"
        raise ConfigError(f"{OTHER} ({shown(unasked)}), {place}; {ways}")
    _require_changed(asked, folder, changes, mark)
    if changes and isinstance(config, TrainingConfig) and config.checkpoint.resume is Resume.never:
        ways = "checkpoint.resume=auto does, another output_dir begins anew"
        raise ConfigError(
            f"{OTHER} ({shown(changes)}): with checkpoint.resume=never it does not go on, {place}; {ways}"
        )
    return changes


def require_nothing_accepted(folder: RunFolder, config: RunConfig) -> None:
    """Of a folder in which no run has begun."""
    if isinstance(config, TrainingConfig) and config.resume.accept:
        rule = f"{KEY} goes with a run that goes on, and none has begun in {str(folder.path)!r}"
        raise ConfigError(f"{rule}: without it one begins, the output_dir of a run goes on, got {config.resume.accept}")


def _is_empty(folder: RunFolder) -> bool:
    """Whether nothing that the run has computed lies there."""
    made = (folder.metrics, folder.model, folder.best, folder.finished)
    return folder.newest_step() is None and not any(path.exists() for path in made)


def _former(changes: list[Change]) -> str:
    """The second way out: what was."""
    (first, *more) = changes
    if more:
        return "the former values go on as before"
    if first.name.startswith((CONTENTS, CODE)):
        return f"{first.key} as it was goes on as before"
    value = "null" if first.before is None else first.before.strip('"')
    return f"{first.name}={value} goes on as before"


def _require_changeable(asked: Iterable[str], config: RunConfig, mark: Fingerprint) -> None:
    keys = [key for key, _ in flat(asdict(config), "")] + ["version"]
    for name in asked:
        under = [key for key in keys if covers(name, key)]
        if not under:
            near = nearest(name, {".".join(key.split(".")[:count]) for key in keys for count in range(1, 5)})
            raise ConfigError(f"{KEY} must hold keys of the config, or their beginnings, got {name!r}{near}")
        groups = {group_of(key, has_best=mark.has_best()) for key in under}
        if groups == {Group.free}:
            raise ConfigError(f"{KEY}: {name} may change without being asked for; leave it out, got {name!r}")
        if groups == {Group.length}:
            raise ConfigError(f"{KEY}: a run is made longer by {name} itself; leave it out, got {name!r}")
        if Group.accepted not in groups:
            raise ConfigError(f"{KEY}: with another {name} it is another run, in another output_dir, got {name!r}")


def _require_changed(asked: Iterable[str], folder: RunFolder, changes: list[Change], mark: Fingerprint) -> None:
    """One that was accepted before counts: the same command goes on when it was interrupted once more."""
    now = {change.key for change in changes} | _accepted_before(folder, mark)
    for name in asked:
        if not any(covers(name, key) for key in now):
            near = f"changed: {', '.join(sorted(now))}" if now else "nothing has changed"
            way = "without it the run goes on as it is"
            raise ConfigError(f"{KEY}: {name} has not changed since the run began ({near}); {way}, got {name!r}")


def _accepted_before(folder: RunFolder, mark: Fingerprint) -> set[str]:
    """Keys whose values are those that the folder's run has gone on with."""
    entries = dict(mark.entries)
    noted = {line["changed"]: line["after"] for line in folder.noted() if "changed" in line}
    return {key_of(name) for name, after in noted.items() if json.loads(entries.get(name, "null")) == after}

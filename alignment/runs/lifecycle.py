"""A run is begun once in its folder, goes on there, and is finished once.

`config.yaml` is the run as a recipe, `started.json` and `finished.json` say what it is of (runs/fingerprint.py), and
`history.jsonl` what happened to it since: when it went on from which step, where it was made longer, what was changed.
"""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf

from alignment.config.checkpoint import Resume
from alignment.config.errors import ConfigError, UserError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.resume import ResumeConfig
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import RejectionConfig, task_name
from alignment.config.train import Schedule
from alignment.runs.accept import OTHER, accepted, require_nothing_accepted
from alignment.runs.claim import make_folder
from alignment.runs.commits import require_same_commits
from alignment.runs.fingerprint import Change, Fingerprint, shown
from alignment.runs.folder import RunFolder
from alignment.runs.notes import read_note
from alignment.runs.settings import settings_of
from alignment.runs.written import whole_file
from alignment.terminal import say

BATCHED = (TrainingConfig, RejectionConfig, EvaluateConfig)
"""The configs that have a `batch`."""

Run = TypeVar("Run", bound=RunConfig)


def as_recipe(config: RunConfig) -> str:
    task = f"defaults:\n  - task: {task_name(config)}\n  - _self_\n\n"
    return task + OmegaConf.to_yaml(OmegaConf.structured(config))


def is_of_run(folder: RunFolder) -> bool:
    """Whether a run was in the folder, or was submitted to it: only then are the files there a run's to replace. A
    pipeline's folder has no mark but `config.yaml`, with every key, and so has one whose `started.json` was taken away.
    """
    if folder.started.exists() or folder.submitted.exists():
        return True
    text = folder.config.read_bytes().decode(errors="replace") if folder.config.exists() else ""
    is_begun = re.match(r"defaults:\n  - task: \S+\n  - _self_\n\n", text) is not None
    return is_begun and all(f"\n{field.name}:" in text for field in fields(RunConfig))


def write_config(folder: RunFolder, config: RunConfig) -> None:
    """The resolved config, as a recipe: `alignment run FOLDER/config.yaml` runs it again."""
    make_folder(folder.path)
    text = as_recipe(as_begun(folder, config))
    if not folder.config.exists() or folder.config.read_bytes() != text.encode():
        with whole_file(folder.config) as path:
            path.write_text(text)


def as_begun(folder: RunFolder, config: Run) -> Run:
    """The config with the `batch.max_tokens` that the run in the folder began with, where it names none: another number
    would change the last bits of what comes next."""
    if not isinstance(config, BATCHED) or config.batch.max_tokens is not None or not folder.started.exists():
        return config
    batch = settings_of(folder.path).get("batch")
    number = batch.get("max_tokens") if isinstance(batch, dict) else None
    return replace(config, batch=replace(config.batch, max_tokens=number)) if isinstance(number, int) else config


def start(folder: RunFolder, config: RunConfig, mark: Fingerprint) -> None:
    """Note in the folder what its run is of; a run that is there already goes on, with the changes that are asked for
    and to a later end too.

    Raises:
        ConfigError: it is another run, or one that cannot be made longer.
    """
    changes = require_goes_on(folder, config, mark)
    earlier = _begun(folder)
    for change in changes:
        _steer(folder, change)
    if earlier is not None and earlier.length() != mark.length():
        _lengthen(folder, config, earlier, mark)
    if changes:
        folder.finished.unlink(missing_ok=True)
    if isinstance(config, TrainingConfig):
        config = replace(config, resume=ResumeConfig())  # what was asked for once is in the history
    write_config(folder, config)
    _write_mark(folder.started, mark)


def require_goes_on(folder: RunFolder, config: RunConfig, mark: Fingerprint) -> list[Change]:
    """What is asked to change as the run in the folder goes on.

    Raises:
        ConfigError: the folder holds another run than this one, or one that cannot go on to this one's end.
        UserError: a file that says what its run is of is damaged.
    """
    earlier = _begun(folder)
    if earlier is None:
        require_nothing_accepted(folder, config)
        return []
    settings_of(folder.path)  # one that is damaged is told before anything has changed
    require_same_commits(folder.config, config, mark.changes(earlier))
    changes = accepted(folder, config, earlier, mark)
    if earlier.length() != mark.length():
        _require_longer(folder, config, earlier.length(), mark.length())
    elif changes and folder.finished.exists() and not _ended_early(folder):
        ways = "a later end (train.max_steps, train.epochs) has further ones, another output_dir begins anew"
        names = ", ".join(change.name for change in changes)
        raise ConfigError(
            f"{OTHER}: {names} would act on further steps, and the run in {str(folder.path)!r} is finished: {ways}"
        )
    return changes


def _require_longer(folder: RunFolder, config: RunConfig, was: dict[str, float], now: dict[str, float]) -> None:
    assert isinstance(config, TrainingConfig)  # which alone has a length
    ((old_key, old),), ((key, new),) = was.items(), now.items()
    asked = f"{key}={new:g}, got {str(folder.path)!r}"
    anew = "another output_dir begins anew"
    if key != old_key:
        rule = f"{OTHER}: it was begun with {old_key}={old:g} and goes on by that key, not to {asked}"
        raise ConfigError(f"{rule}; {old_key}=N with {key}=null goes on, {anew}")
    if new < old:
        saved = f"step {folder.newest_step()} is saved" if folder.newest_step() is not None else "no step is saved"
        rule = f"output_dir holds a run of {key}={old:g} ({saved}), which cannot be made shorter, to {asked}"
        raise ConfigError(f"{rule}; {key}={old:g} goes on as before, `alignment export` has its checkpoints, {anew}")
    if config.checkpoint.resume is Resume.never:
        rule = f"{OTHER}: with checkpoint.resume=never it does not go on from {key}={old:g} to {asked}"
        raise ConfigError(f"{rule}; checkpoint.resume=auto does, {anew}")
    if old > 0 and folder.finished.exists() and folder.newest_step() is None:  # an evaluation alone needs none
        way = f"another output_dir with model.path={folder.model} begins where it ended, with a new schedule"
        raise ConfigError(
            f"output_dir holds a finished run of {key}={old:g} without checkpoints (checkpoint.save_last), "
            f"so it cannot go on to {asked}; {way}; {key}={old:g} leaves it as it is"
        )


def _lengthen(folder: RunFolder, config: RunConfig, earlier: Fingerprint, mark: Fingerprint) -> None:
    """Take back that the run is finished, and say and note what was asked."""
    assert isinstance(config, TrainingConfig)
    ((key, old),), ((_, new),) = earlier.length().items(), mark.length().items()
    line = f"{folder.path}: goes on to {key}={new:g}, where {old:g} was asked before"
    if old > 0 and (config.train.schedule is not Schedule.constant or config.train.warmup_ratio):
        line += (
            f"; train.schedule={config.train.schedule.value} takes its rates from the number of steps, "
            f"so this is not the run that {key}={new:g} would have been from its start"
        )
    say(line)
    step = folder.newest_step() or 0
    folder.note(asked={key: new}, before={key: old}, schedule=config.train.schedule.value, step=step)
    folder.finished.unlink(missing_ok=True)


def _steer(folder: RunFolder, change: Change) -> None:
    """Say and note what is changed from which step on."""
    done = folder.newest_step() or 0
    say(f"{folder.path}: goes on from step {done} with another {change.key} (resume.accept): {change}")
    before, after = (None if value is None else json.loads(value) for value in (change.before, change.after))
    folder.note(changed=change.name, before=before, after=after, step=done)


def _ended_early(folder: RunFolder) -> bool:
    """Whether the finished run ended before its last step."""
    return "stopped" in read_note(folder.finished)


def belongs_to(folder: RunFolder, mark: Fingerprint) -> bool:
    """No run has begun in the folder, or just this one has."""
    return not folder.started.exists() or mark.is_same(_read_mark(folder.started))


def why_other(folder: RunFolder, mark: Fingerprint) -> str:
    """In what the run that the folder holds is another than this one."""
    earlier = _read_mark(folder.started)
    if earlier is None:
        return "it is of an earlier version of this package"
    was, now = earlier.length(), mark.length()
    lengths = [f"{key} was {was[key]:g}" for key in was.keys() - now.keys()]
    lengths += [f"{key} was {was.get(key, 0):g} and is {now[key]:g}" for key in now if was.get(key) != now[key]]
    return ", ".join([each for each in (shown(mark.changes(earlier)), *lengths) if each])


def is_steered(config: RunConfig) -> bool:
    """Whether the run in the folder is to go on with changes, and not to make room for another."""
    return isinstance(config, TrainingConfig) and bool(config.resume.accept)


def is_finished(folder: RunFolder, mark: Fingerprint) -> bool:
    path = folder.finished
    return path.exists() and mark.is_same(_read_mark(path))


def finish(folder: RunFolder, mark: Fingerprint, stopped: str | None = None) -> None:
    """`stopped`: why the run ended before its last step, if its config asked for that."""
    _write_mark(folder.finished, mark, **({} if stopped is None else {"stopped": stopped}))


def _write_mark(path: Path, mark: Fingerprint, **more: str) -> None:
    entries = {key: json.loads(value) for key, value in mark.entries}
    with whole_file(path) as beside:
        beside.write_text(json.dumps({"fingerprint": entries, **more}, indent=1))


def _begun(folder: RunFolder) -> Fingerprint | None:
    """What the run in the folder is of; None where none has begun.

    Raises:
        ConfigError: it was begun by a version that noted it in another way.
    """
    path = folder.started
    if not path.exists():
        return None
    earlier = _read_mark(path)
    if earlier is None:
        rule = "output_dir holds a run of an earlier version of this package, which knew its inputs by their times"
        way = f"another output_dir begins anew; without {path} the run goes on, on your word that nothing has changed"
        raise ConfigError(f"{rule}: {way}, got {str(folder.path)!r}")
    return earlier


def _read_mark(path: Path) -> Fingerprint | None:
    """None: it is of an earlier version of this package.

    Raises:
        UserError: the file is damaged.
    """
    try:
        entries = json.loads(path.read_bytes())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        counts = "the folder counts as not begun" if path.name == RunFolder("").started.name else "it is not finished"
        raise UserError(f"{path} cannot be read ({error}); without it, {counts}") from error
    if not isinstance(entries, dict):
        return None
    return Fingerprint(tuple(sorted((key, json.dumps(value, sort_keys=True)) for key, value in entries.items())))

"""The verb `compare`: runs side by side, a column each."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.config.errors import UserError
from alignment.config.mappings import mappings
from alignment.config.metrics import EVAL, headlines
from alignment.config.tasks import TASKS
from alignment.evaluate.rows import value_words
from alignment.overview.found import found as found_by
from alignment.overview.grid import Column, lines
from alignment.overview.paired import differences, evaluated
from alignment.overview.status import Status, read_status
from alignment.overview.steered import lengthened, steered
from alignment.runs.folder import RunFolder
from alignment.runs.settings import differing, empty_in_some, runs_in, task_of
from alignment.user_error import fail

SHOWN = 3  # runs that a command names


def print_comparison(folders: list[Path]) -> None:
    try:
        runs = [run for folder in folders for run in _runs(folder)]
        if len(runs) < 2:
            raise UserError(f"RUN must name two runs or more, or a folder of several, got {str(folders[0])!r} alone")
        found = [read_status(run) for run in runs]
        said = list(comparison(found))
    except UserError as error:
        fail(f"compare: {error}")
    print("\n".join(said))


def _runs(folder: Path) -> list[Path]:
    """Raises:
    UserError: there is no run in the folder.
    """
    runs = [run for run in runs_in(folder) if RunFolder(run).config.exists()]
    if not runs:
        raise UserError(
            f"RUN must be a run's folder, or one of several, got {str(folder)!r}, which holds no config.yaml"
        )
    return runs


def comparison(found: list[Status]) -> Iterator[str]:
    """What the runs differ in, what they measured last, and for evaluations the differences from the first run."""
    names = _names([status.folder for status in found])
    settings = [status.settings for status in found]
    rows = {
        **_settings_rows(settings),
        **_steered_rows(found),
        "state": [status.place() for status in found],
        "step": [status.steps() for status in found],
        **_metric_rows(found),
        **_method_rows(found),
    }
    cells = list(zip(*rows.values(), strict=True))
    columns = [
        Column(name, list(column), number) for number, (name, column) in enumerate(zip(names, cells, strict=True))
    ]
    yield from lines([Column("", list(rows)), *columns])
    scored = [
        evaluated(name, RunFolder(status.folder), status.settings) for name, status in zip(names, found, strict=True)
    ]
    evaluations = [each for each in scored if each is not None]
    for other in evaluations[1:]:
        yield from differences(evaluations[0], other)
    without = [name for name, each in zip(names, scored, strict=True) if each is None]
    if without == names and all(_replies(task_of(each)) for each in settings):
        what = "their replies are not compared here; prompt by prompt that is done by"
        yield f"{what} alignment evaluate {_shown(found)} --data FILE"
    elif without and evaluations:
        yield f"not paired by prompt, without a scores.jsonl as evaluations have it: {', '.join(without)}"


def _replies(task: str) -> bool:
    """Whether the runs of a task leave a model that replies."""
    return task in TASKS and TASKS[task].is_policy


def _shown(found: list[Status]) -> str:
    return " ".join(shlex.quote(str(status.folder)) for status in found) if len(found) <= SHOWN else "RUN RUN"


def _names(folders: list[Path]) -> list[str]:
    """The last part of each path where that tells them apart, else the whole."""
    short = [folder.name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _settings_rows(settings: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The keys that differ; of runs of several tasks those that all have, entries of mappings among them, or in which
    runs of one task differ."""
    tasks = [task_of(each) or "-" for each in settings]
    settings = list(map(_acting, settings))
    keys = differing(settings)
    if len(set(tasks)) == 1:
        return keys
    kin = [[own for own, task in zip(settings, tasks, strict=True) if task == each] for each in dict.fromkeys(tasks)]
    within = {key for each in kin for key in differing(each)}
    named = {key for root in TASKS.values() for key, _ in mappings(root)} & empty_in_some(settings)
    shown = {key for key, values in keys.items() if "-" not in values or key.rpartition(".")[0] in named}
    return {"task": tasks, **{key: values for key, values in keys.items() if key in shown | within}}


def _acting(settings: dict[str, Any]) -> dict[str, Any]:
    """Without the shape of adapters where there are none."""
    match settings:
        case {"model": {"lora": {"rank": 0}, **others}}:
            return {**settings, "model": {**others, "lora": {"rank": 0}}}
    return settings


def _steered_rows(found: list[Status]) -> dict[str, list[str]]:
    """The keys that were changed on the way, and those by which a run was made longer."""
    rows: dict[str, list[str]] = {}
    for title, changes in (("steered", steered), ("extended", lengthened)):
        changed = [changes(status.history) for status in found]
        keys = dict.fromkeys(key for each in changed for key in each)
        rows |= {f"{title} {key}": [each.get(key, "-") for each in changed] for key in keys}
    return rows


def _metric_rows(found: list[Status]) -> dict[str, list[str]]:
    """The main metrics of the newest row of training, then of the newest evaluation, with its intervals."""
    training = [status.latest() for status in found]
    evaluations = [status.newest(of_evaluation=True) for status in found]
    trained = headlines(dict.fromkeys(name for row in training for name in row if not name.startswith(EVAL)))
    held_out = headlines(dict.fromkeys(name for row in evaluations for name in row if name.startswith(EVAL)))
    rows = {name: [value_words(row, name) if name in row else "-" for row in training] for name in trained}
    return rows | {name: [value_words(row, name) if name in row else "-" for row in evaluations] for name in held_out}


def _method_rows(found: list[Status]) -> dict[str, list[str]]:
    """What evaluations say of each model that they compare."""
    each_found = [found_by(status.folder) for status in found]
    tables = [
        {f"{method} {score}": words for method, scores in each.items() for score, words in scores.items()}
        for each in each_found
    ]
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: [table.get(name, "-") for table in tables] for name in names}

"""Several runs, a line each: the settings in which they differ, their state and step, and what they measured."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.config.errors import UserError
from alignment.config.metrics import EVAL, SHORT, headlines
from alignment.evaluate.rows import value_words
from alignment.overview.grid import Column, lines
from alignment.overview.status import Status
from alignment.overview.steered import lengthened, steered
from alignment.runs.folder import RunFolder
from alignment.runs.settings import differing, task_of
from alignment.user_error import nearest

JOB, OVERRIDE, EVALUATION, TRAINING = 1, 100, 200, 300  # ranks: what goes first where there is no room is the highest


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user wants to see of runs."""

    metrics: tuple[str, ...] = ()
    """None: those that say how a run does."""
    sort: str | None = None
    descending: bool = False


def table(folder: Path, found: list[Status], asked: Asked) -> Iterator[str]:
    """Raises:
    UserError: no run has a metric that is asked for.
    """
    metrics = _metrics(found, asked)
    found = _sorted(found, asked)
    columns = [
        Column("run", [_name(status.folder, folder) for status in found]),
        Column("state", [status.place() for status in found]),
        Column("step", [status.steps() for status in found]),
        *([Column("job", [status.job or "-" for status in found], JOB)] if any(s.job for s in found) else []),
        *_changed(found),
        *_overrides(found),
        *(_column(name, number, found, asked) for number, name in enumerate(metrics)),
    ]
    yield from lines(columns)
    names = [_name(status.folder, folder) for status in found]
    yield from (f"{name} is damaged: {s.damage}" for name, s in zip(names, found, strict=True) if s.damage)
    yield from (f"{name}: {s.state()}: {s.why()}" for name, s in zip(names, found, strict=True) if _is_worth(s))
    yield from _evaluations(found, names)
    num_finished = sum(status.is_finished for status in found)
    yield f"{num_finished} of {len(found)} finished"


def _evaluations(found: Sequence[Status], names: Sequence[str]) -> Iterator[str]:
    """Whose figures are of models, and in no column of a table of runs."""
    having = [n for n, status in enumerate(found) if not status.damage and RunFolder(status.folder).summary.exists()]
    if having:
        which = ", ".join(names[n] for n in having)
        yield f"results of {which}, model by model: alignment status {shlex.quote(str(found[having[0]].folder))}"


def _is_worth(status: Status) -> bool:
    """Whether why it ended is more than its state says."""
    return bool(status.why()) and not status.is_finished


def _changed(found: Sequence[Status]) -> list[Column]:
    """Which runs did not go all their way with the settings that they began with; `extended by`: by which key."""
    columns = [
        ("steered", [steered(s.history) for s in found]),
        ("extended by", [lengthened(s.history) for s in found]),
    ]
    cells = [(title, [", ".join(keys) or "-" for keys in each]) for title, each in columns if any(each)]
    return [Column(title, each, JOB) for title, each in cells]


def _name(run: Path, folder: Path) -> str:
    return str(run.relative_to(folder)) if run.is_relative_to(folder) else str(run)


def _metrics(found: Sequence[Status], asked: Asked) -> list[str]:
    """Evaluations first: they are what runs are compared by."""
    names = dict.fromkeys(name for status in found for name in status.latest())
    for name in (*asked.metrics, *([asked.sort] if asked.sort else [])):
        if name not in names:
            raise UserError(f"no run has the metric {name!r}{nearest(name, names)}; `--all` of one run lists its own")
    if asked.metrics:
        return list(asked.metrics)
    shown = headlines(name for name in names if name.startswith(EVAL))
    shown += [name for name in SHORT if name in names]
    return [*([asked.sort] if asked.sort and asked.sort not in shown else []), *shown]


def _sorted(found: list[Status], asked: Asked) -> list[Status]:
    """Runs without the metric come last, in either direction."""
    if asked.sort is None:
        return found
    key = asked.sort
    having = [status for status in found if key in status.latest()]
    having.sort(key=lambda status: float(status.latest()[key]), reverse=asked.descending)
    return [*having, *(status for status in found if key not in status.latest())]


def _overrides(found: Sequence[Status]) -> list[Column]:
    """Of runs of one task the keys in which they differ; of others their tasks, for most keys would differ. A run
    without a config, damaged or yet to be started, has neither."""
    known = [number for number, status in enumerate(found) if status.settings]
    tasks = [task_of(found[number].settings) for number in known]
    several = len(set(tasks)) > 1
    keys = {"task": tasks} if several else differing([found[number].settings for number in known])
    ends = [key.rpartition(".")[2] for key in keys]
    titles = [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
    columns = []
    for rank, (title, values) in enumerate(zip(titles, keys.values(), strict=True), start=OVERRIDE):
        cells = dict(zip(known, values, strict=True))
        columns.append(Column(title, [cells.get(number, "") or "-" for number in range(len(found))], rank))
    return columns


def _column(name: str, number: int, found: Sequence[Status], asked: Asked) -> Column:
    rows = [status.latest() for status in found]
    cells = [value_words({name: row[name]}, name) if name in row else "-" for row in rows]
    rank = (EVALUATION if name.startswith(EVAL) else TRAINING) + number
    return Column(name, cells, 0 if name == asked.sort or name in asked.metrics else rank, is_number=True)

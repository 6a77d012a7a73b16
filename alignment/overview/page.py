"""One run on a page: its state, its step, what its newest rows say."""

import shlex
import time
from collections.abc import Iterator

from alignment.config.metrics import EVAL, headlines, metric
from alignment.evaluate.rows import value_words
from alignment.overview.found import found
from alignment.overview.grid import Column, lines
from alignment.overview.status import Status, ago
from alignment.overview.steered import lengthened, steered
from alignment.runs.claim import Life
from alignment.runs.folder import RunFolder
from alignment.runs.rows import Row
from alignment.slurm import commands
from alignment.terminal import duration

GROUPS = {"eval": "evaluation", "time": "time and memory", "": "training"}


def page(status: Status, *, every: bool) -> Iterator[str]:
    """`every`: all metrics with their meaning, and not the main ones alone."""
    yield str(status.folder)
    yield from _state(status)
    if "train" in status.settings or status.rows:  # which an evaluation has not
        left = status.seconds_left(time.time())
        yield f"  step      {status.steps()}{'' if left is None else f', about {duration(left)} left'}"
    yield from (f"  steered   {key} {words}" for key, words in steered(status.history).items())
    yield from (f"  extended  {key} {words}" for key, words in lengthened(status.history).items())
    if status.rows:
        yield from _metrics(status)
    yield from _evaluation(status)
    yield from (f"  {name:<9} {rest}" for name, _, rest in (line.partition(": ") for line in _left(status)))
    yield from _next(status)
    if every:
        yield from _every(status)


def _state(status: Status) -> Iterator[str]:
    why = f": {status.why()}" if status.why() else ""
    yield f"  state     {status.state()}{_who(status)}{why if status.known is None else ''}"
    if status.known is None:
        if status.job is not None:
            yield f"  job       {status.job}, which Slurm does not know any more"
        return
    yield f"  job       {status.job}{''.join(f', {word}' for word in _of_the_job(status.known))}"
    if why and not status.is_finished:
        yield f"  ended     {status.why()}"


def _evaluation(status: Status) -> Iterator[str]:
    """A line each model, a column each figure."""
    methods = found(status.folder)
    if methods:
        scores = list(dict.fromkeys(score for each in methods.values() for score in each))
        columns = [Column(score, [each.get(score, "-") for each in methods.values()]) for score in scores]
        yield from (f"  {line}" for line in lines([Column("found", list(methods)), *columns]))


def _next(status: Status) -> Iterator[str]:
    folder = shlex.quote(str(status.folder))
    if status.known is not None and status.is_finished:  # of which Slurm knows nothing
        yield f"  finished  yes{f': {status.stopped}' if status.stopped else ''}"
    if status.known is not None and status.known.state in commands.ENDED_BADLY:
        yield f"  why: alignment logs {folder}"
    is_left = status.life is None or status.life[0] is Life.died
    if status.is_started and not status.is_finished and is_left and status.known is None:
        yield f"  to go on: alignment run {shlex.quote(str(RunFolder(status.folder).config))}"


def _who(status: Status) -> str:
    if status.life is None or status.is_finished or status.known is not None:
        return ""
    return f": {status.life[1].describe()}"


def _metrics(status: Status) -> Iterator[str]:
    newest, evaluation = status.newest(of_evaluation=False), status.newest(of_evaluation=True)
    names = [name for name in newest if not name.startswith((EVAL, "time/"))]
    shown = [*(headlines(names) or [name for name in names if name not in ("step", "lr")][:6])]
    shown += ["lr"] if "lr" in newest else []
    when = f"step {newest['step']}, {ago(status.written)}" if status.written is not None else f"step {newest['step']}"
    if shown:
        yield f"  train     {_words(newest, shown)}  ({when})"
    names = [name for name in evaluation if name.startswith(EVAL)]
    if names:
        yield f"  eval      {_words(evaluation, headlines(names) or names)}  (step {evaluation['step']})"


def _words(row: Row, names: list[str]) -> str:
    return "  ".join(f"{name} {value_words(row, name)}" for name in names if isinstance(row[name], int | float))


def _left(status: Status) -> list[str]:
    return [line for line in RunFolder(status.folder).left() if not line.startswith("logs: ")]


def _every(status: Status) -> Iterator[str]:
    """The newest value of each metric, by kind and name."""
    found = status.latest()
    found.pop("step", None)
    for start, title in reversed(GROUPS.items()):
        names = sorted(name for name in found if _group(name) == start)
        if names:
            yield f"\n  {title}"
        width = max(map(len, names), default=0)
        for name in names:
            known = metric(name)
            yield f"    {name:<{width}}  {found[name]:<10.4g}  {'?' if known is None else known.words()}"


def _group(name: str) -> str:
    start = name.partition("/")[0]
    return start if start in GROUPS else ""


def _of_the_job(known: commands.JobState) -> Iterator[str]:
    if known.nodes:
        yield f"on {known.nodes}"
    if known.run_time:
        yield f"for {known.run_time}" + (f" of {known.time_limit}" if known.time_limit else "")
    if known.restarts:
        yield f"requeued {known.restarts} time{'s' if known.restarts > 1 else ''}"
    if known.is_over():
        yield f"exit code {known.exit_code}"

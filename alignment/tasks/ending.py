"""The last lines of a run: what was learned, where it lies, and what to do next. For the main process."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from alignment.config.data import DataConfig, Template, has_rows
from alignment.config.errors import UserError
from alignment.config.metrics import headlines
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.sources import Format
from alignment.config.supervised import RewardConfig, RewardProcessConfig, RewardRegressionConfig
from alignment.config.tasks import PipelineConfig, RejectionConfig, Selection
from alignment.evaluate.rows import course
from alignment.runs.folder import RunFolder, noted_step
from alignment.runs.rows import read_rows
from alignment.runs.settings import settings_of, task_of
from alignment.terminal import say

SCORERS = (RewardConfig, RewardRegressionConfig, RewardProcessConfig)


def say_ending(config: RunConfig, folder: Path, stopped: str | None) -> None:
    """Of a run that has just been finished; `stopped`: why before its last step."""
    files = RunFolder(folder)
    if isinstance(config, TrainingConfig):
        for line in _learned(files, stopped):
            say(line)
    if isinstance(config, PipelineConfig):
        run, left_out = ([s.name for s in config.stages if config.runs(s) is runs] for runs in (True, False))
        what = f"{len(run)} of {len(config.stages)}" if left_out else f"all {len(run)}"
        others = f"; left out: {', '.join(left_out)}" if left_out else ""
        say(f"{what} stages are done: {', '.join(str(folder / name) for name in run)}{others}")
    for line in files.left():
        say(line)
    if not _is_stage(files):
        for command in commands(config, files):
            say(f"next: {command}")


def _is_stage(files: RunFolder) -> bool:
    """Of a pipeline, whose other stages know what is next."""
    try:
        return task_of(settings_of(files.path.parent)) == "pipeline"
    except UserError:  # another's file of that name
        return False


def _learned(files: RunFolder, stopped: str | None) -> Iterator[str]:
    rows = read_rows(files.metrics) if files.metrics.exists() else []
    if not rows:
        return
    yield f"finished at step {rows[-1]['step']}" + ("" if stopped is None else f", before its last one: {stopped}")
    step = noted_step(files.model)  # the best weights' own
    lines = course(rows if step is None else [row for row in rows if row["step"] <= step])
    if not lines and len(rows) > 1:  # without held-out rows, those of training
        first, last = rows[0], rows[-1]
        names = [name for name in headlines(last) if name in first]
        lines = [
            f"{name} {first[name]:.4g} -> {last[name]:.4g} (step {first['step']} -> {last['step']})" for name in names
        ]
    yield from (f"  {line}" for line in lines)


def commands(config: RunConfig, files: RunFolder) -> list[str]:
    """What is mostly done next, as it can be typed."""
    folder = shlex.quote(str(files.path))
    if isinstance(config, PipelineConfig):
        return [f"alignment status {folder}"]
    if isinstance(config, RejectionConfig):
        return [_learn_selected(config, files)]
    if not isinstance(config, TrainingConfig) or not files.model.is_dir():
        return []
    rows = _rows(config.data)
    if isinstance(config, RewardConfig) and rows is not None:
        return [f"alignment evaluate --reward {folder} --pairs {rows.replace('data.format', 'pairs.format')}"]
    if isinstance(config, SCORERS):
        return [f"alignment status {folder} --all"]
    return [*_beside_its_start(config, folder, rows), f"alignment chat {folder}"]


def _learn_selected(config: RejectionConfig, files: RunFolder) -> str:
    """Train the same model on the rows that were selected."""
    tiny = "tiny_" if config.data.format is Format.toy else ""
    method = "sft" if config.select is Selection.best else "dpo"
    limits = " data.train.limit=null data.eval.limit=null" if tiny else ""
    model = "" if config.model.path is None else f" model.path={shlex.quote(config.model.path)}"
    rows = shlex.quote(str(files.selected))
    return f"alignment run {tiny}{method}{model} data.format=native data.train.path={rows}{limits}"


def _beside_its_start(config: TrainingConfig, folder: str, rows: str | None) -> Iterator[str]:
    """Its model against the one that it began as, on the prompts of its held-out rows."""
    start = config.model.path
    if config.data.format is Format.toy and start is not None and has_rows(config.data, "eval"):
        runs = shlex.quote(f"runs={{before: {start}, after: {folder}}}")
        yield f"alignment run tiny_evaluate {runs} baseline=before"
    elif rows is not None:
        yield f"alignment evaluate {'' if start is None else f'{shlex.quote(start)} '}{folder} --data {rows}"


def _rows(data: DataConfig) -> str | None:
    """Its held-out rows in the words of a command; None where they are no single file that is read as it lies."""
    paths = data.eval.paths()
    if len(paths) != 1 or data.columns or data.template is not Template.chat or data.format is Format.text:
        return None
    layout = "" if data.format in (Format.auto, Format.native) else f" data.format={data.format.value}"
    return f"{shlex.quote(paths[0])}{layout}"

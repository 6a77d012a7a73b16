"""The last lines of a run: what was learned, where it lies, and what to do next. For the main process."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignment.config.data import DataConfig, Template, has_rows
from alignment.config.errors import UserError
from alignment.config.hub import Kind, located, pinned_name
from alignment.config.metrics import headlines
from alignment.config.model_kinds import is_reward_model
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.saved_prompt import is_soft_prompt
from alignment.config.sources import Format
from alignment.config.supervised import (
    ReferencedConfig,
    RewardConfig,
    RewardProcessConfig,
    RewardRegressionConfig,
    SFTConfig,
)
from alignment.config.tasks import PipelineConfig, RejectionConfig, Selection
from alignment.data.read import read_each
from alignment.data.records import DataError
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


def say_sweep(folders: Sequence[Path]) -> None:
    """`folders`: where the runs of a sweep that were carried out here lie, each in a folder of its own within."""
    for folder in dict.fromkeys(folders):
        say(f"next: alignment status {shlex.quote(str(folder))}")


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
    if any("[" in line for line in lines):
        yield "  [ ] 95% interval over the held-out rows"


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
    if isinstance(config, SCORERS):
        return [*_of_scorer(config, folder, rows), *_with_reward(config, files)] or [f"alignment status {folder} --all"]
    return [
        *_beside_its_start(config, folder, rows),
        *_on_pairs(config, files),
        f"alignment chat {folder}",
        f"alignment push {folder} {shlex.quote(_name(files.path.resolve()))} --private",
    ]


def _name(run: Path) -> str:
    """For a repository: of a sweep's run, whose folder is a number, the sweep's with it."""
    return f"{run.parent.name}-{run.name}" if run.name.isdecimal() else run.name


def _of_scorer(config: TrainingConfig, folder: str, rows: str | None) -> Iterator[str]:
    """How often a reward model is right on held-out pairs, and where."""
    if isinstance(config, RewardConfig) and config.data.format is Format.toy:
        yield f"alignment evaluate --reward {folder} pairs.format=toy pairs.eval.limit=500"
    elif isinstance(config, RewardConfig) and rows is not None:
        yield f"alignment evaluate --reward {folder} --pairs {rows.replace('data.', 'pairs.')}"
    elif isinstance(config, RewardConfig):
        yield f"alignment evaluate --reward {folder} --pairs {_of_a_file(config.data, 'pairs')}"


def _with_reward(config: TrainingConfig, files: RunFolder) -> Iterator[str]:
    """PPO of the model that the reward model began as, with its reward."""
    judge, start = shlex.quote(str(files.model)), config.model.path
    if isinstance(config, RewardProcessConfig) or (start is not None and is_reward_model(located(start))):
        return
    if config.data.format is Format.toy:
        model = "" if start is None else f" model.path={shlex.quote(start)}"
        yield f"alignment run tiny_ppo{model} reward.path={judge} reward.function=null"
    elif start is not None and (data := _data_words(config.data)) is not None:
        yield f"alignment run ppo model.path={shlex.quote(start)} reward.path={judge} {data}"


def _on_pairs(config: TrainingConfig, files: RunFolder) -> Iterator[str]:
    """DPO of a fine-tuned model, where the rows that it has learned from are pairs."""
    key = "model.adapter" if is_soft_prompt(files.model) else "model.path"  # with it weights are read, and none trains
    model = f"{key}={shlex.quote(str(files.model))}"
    if key == "model.adapter" and config.model.is_packed:
        model += f" model.quantization={config.model.quantization.value}"
    if not isinstance(config, SFTConfig):
        return
    if config.data.format is Format.toy:
        yield f"alignment run tiny_dpo {model}"
    elif _are_pairs(config.data) and (data := _data_words(config.data)) is not None:
        yield f"alignment run dpo {model} {data}"


def _are_pairs(data: DataConfig) -> bool:
    """Of one file that is here, or a split of the hub's, by the fields of its first row."""
    path = data.train.path
    if not isinstance(path, str) or (pinned_name(path, Kind.data) is None and not located(path, Kind.data).is_file()):
        return False
    with suppress(UserError):  # the file may be gone by now
        row: Mapping[str, Any] | DataError = next((row for _, row in read_each(path, data.columns.values())), {})
        return not isinstance(row, DataError) and data.columns.get("rejected", "rejected") in row
    return False


def _data_words(data: DataConfig) -> str | None:
    """The same rows in the words of a command; None where they have no one path, or are texts without prompts."""
    if not isinstance(data.train.path, str) or data.train.join or data.template is not Template.chat:
        return None
    if data.format is Format.text or data.eval.sets or not isinstance(data.eval.path, str | None):
        return None
    words = {
        "data.format": None if data.format in (Format.auto, Format.native) else data.format.value,
        "data.columns": _named_columns(data),
        "data.train.path": data.train.path,
        "data.eval.path": data.eval.path,
        "data.eval.fraction": data.eval.fraction,
        "data.max_length": data.max_length,
        "data.max_prompt_length": data.max_prompt_length,
    }
    return " ".join(shlex.quote(f"{key}={value}") for key, value in words.items() if value is not None)


def _named_columns(data: DataConfig) -> str | None:
    return "{" + ", ".join(f"{key}: {name}" for key, name in data.columns.items()) + "}" if data.columns else None


def _of_a_file(data: DataConfig, part: str) -> str:
    """FILE, for one that is to come, with the columns that this run's has."""
    named = _named_columns(data)
    return "FILE" if named is None else f"FILE {shlex.quote(f'{part}.columns={named}')}"


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
    start = config.model.adapter or config.model.path
    if config.data.format is Format.toy and start is not None and has_rows(config.data, "eval"):
        runs = shlex.quote(f"runs={{before: {start}, after: {folder}}}")
        yield f"alignment run tiny_evaluate {runs} baseline=before"
    elif rows is not None:
        yield f"alignment evaluate {'' if start is None else f'{shlex.quote(start)} '}{folder} --data {rows}"
    elif isinstance(config, ReferencedConfig) and start is not None:
        yield f"alignment evaluate {shlex.quote(start)} {folder} --data {_of_a_file(config.data, 'data')}"


def _rows(data: DataConfig) -> str | None:
    """Its held-out rows in the words of a command; None where they are no single file that is read as it lies."""
    paths = data.eval.paths()
    if len(paths) != 1 or data.columns or data.template is not Template.chat or data.format is Format.text:
        return None
    layout = "" if data.format in (Format.auto, Format.native) else f" data.format={data.format.value}"
    return f"{shlex.quote(paths[0])}{layout}"

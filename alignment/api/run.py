"""A recipe, or a config, run in this process: `alignment.run`."""

import gc
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignment import preempt
from alignment.api.arguments import SPLITS, require_plain, require_recipe, sorted_arguments
from alignment.api.result import Run
from alignment.api.rows import as_given, write_rows
from alignment.cli.compose import beside_others, composing, resolve, single
from alignment.cli.config_errors import told_as_one_line
from alignment.cli.overrides import written
from alignment.cli.recipes import find_recipe, require_folder
from alignment.cli.run import carry_out, checked, say_advice
from alignment.config.cluster import Scheduler, require_scheduler
from alignment.config.data import Format
from alignment.config.errors import ConfigError, UserError
from alignment.config.outside import learn_task
from alignment.config.run import RunConfig
from alignment.config.tasks import TASKS, PipelineConfig, task_name
from alignment.process import is_launched
from alignment.runs.folder import RunFolder
from alignment.runs.leftovers import present, remove_empty
from alignment.runs.lifecycle import as_recipe

_one = threading.Lock()
IN_MEMORY = " in memory"  # in the place of a path until the rows are in a file


def run(
    recipe: str | Path | RunConfig,
    overrides: Mapping[str, Any] | None = None,
    *,
    model: Any = None,
    data: Any = None,
    eval_data: Any = None,
    output_dir: str | Path | None = None,
    config_dir: str | Path | None = None,
    **groups: Any,
) -> Run:
    """Run a recipe in this process, as `alignment run RECIPE key=value ...` does.

        run = alignment.run("dpo", model="my_sft_model", data=rows, train={"epochs": 1}, loss={"beta": 0.2})
        model, tokenizer = run.load()

    Args:
        recipe: a name that `alignment recipes` lists, the path of a .yaml of yours, or a config:
            `DPOConfig(model=ModelConfig(path=...), data=DataConfig(...), train=TrainConfig(max_steps=10))`.
        overrides: what the command line takes, as a dict: keys with their dots, and presets by their groups,
            `{"loss.beta": 0.2, "distributed": "zero2", "stages.dpo.set.train.epochs": 1}`.
        model: the model to train, a folder or a name; or a dict of the keys of `model`.
        data: the rows to learn from. A path, or rows that are in memory: a list of dicts, a datasets.Dataset, whatever
            gives them one by one; or a dict of the keys of `data`. Rows in memory are written once into `rows/` in
            the run's folder, by what they hold: the same rows are the same run.
        eval_data: the held-out rows, likewise.
        output_dir: the run's folder. An interrupted run goes on where it is called again with the same one, and a
            finished one has nothing to do. None: `runs/`, with the recipe, the time and the model.
        config_dir: a folder of your own recipes and presets.
        groups: further parts of the config as dicts, `train={"epochs": 1}`, or single keys, `seed=1`.

    Returns:
        the finished run: its folder, model, metrics, and `load()`.

    Raises:
        ConfigError: a mistake in the config or its inputs, before anything is computed; a ValueError, in one line.
        UserError: one that shows later, in the data or the models. ConfigError is one, too.
        KeyboardInterrupt: the user has interrupted it. It has saved; called again, it goes on.
        Preempted: SIGTERM or SIGUSR1 has come. It has saved, likewise. Signals are heard in the main thread only.
    """
    if not _one.acquire(blocking=False):
        raise UserError("one run at a time: alignment.run is at work in this process already")
    try:
        gc.collect()  # what is garbage now would stay to the end: see process.importing
        require_recipe(recipe)
        given = {"model": model, "data": data, "eval_data": eval_data, "output_dir": output_dir, **groups}
        asked, rows = sorted_arguments(overrides, {name: each for name, each in given.items() if each is not None})
        with _recipe_of(recipe) as path, beside_others():
            name, folders = find_recipe(str(path), [] if config_dir is None else [require_folder(config_dir)])
            with composing(folders, name), preempt.listening():
                return _run(name, asked, rows)
    except ConfigError as error:
        raise error from None  # the rule is told; what Hydra or YAML has made of the mistake would stand before it
    finally:
        _one.release()


@contextmanager
def _recipe_of(recipe: str | Path | RunConfig) -> Iterator[str | Path]:
    """A config is a recipe that gives every key."""
    if not isinstance(recipe, RunConfig):
        yield recipe
        return
    if type(recipe) not in TASKS.values():
        learn_task(type(recipe).__module__)
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{task_name(recipe).rpartition('.')[2]}.yaml"
        with told_as_one_line([]):
            file.write_text(as_recipe(recipe))
        yield file


def _run(recipe: str, asked: dict[str, Any], rows: Mapping[str, Iterable[Any]]) -> Run:
    """Within `composing`: with the rows in a file, the config is checked as the command checks it, and carried out."""
    paths = {key: asked.pop(key) for key in SPLITS.values() if key in asked}
    paths |= {SPLITS[name]: f"{name}{IN_MEMORY}" for name in rows}
    asked |= _preset_for(recipe, asked, paths) | paths
    made: list[Path] = []
    there: set[Path] = set()
    try:
        if rows:
            if is_launched() and "output_dir" not in asked:
                raise ConfigError("output_dir must be given with rows in memory where several processes are one run")
            asked["output_dir"] = _composed(recipe, asked).output_dir
            there = present(RunFolder(asked["output_dir"]))
            for name, each in rows.items():
                folder = RunFolder(asked["output_dir"]).rows
                before = set(folder.glob("*"))
                asked[SPLITS[name]] = file = write_rows(each, folder, name)
                made += [file] if file not in before else []
        config = _ready(recipe, asked)
        carry_out(config)
    except UserError as error:
        if rows and "output_dir" in asked:
            _take_back(Path(asked["output_dir"]), made, there)
        raise as_given(error, {name: str(asked[SPLITS[name]]) for name in rows}) from error.__cause__
    except preempt.Preempted as stop:
        if preempt.exit_code() == preempt.INTERRUPTED:
            raise KeyboardInterrupt(f"{stop}; called again with its output_dir, the run goes on") from None
        raise
    return _finished(config)


def _preset_for(recipe: str, asked: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, str]:
    """Rows of one's own for a recipe of the toy task's need the preset of such, unless another one is asked for."""
    if not paths or any(key.partition(".")[0] == "data" for key in asked):
        return {}
    with told_as_one_line([]):
        part = single(recipe, _words(asked)).get("data")
    if part is None and any(str(path).endswith(IN_MEMORY) for path in paths.values()):
        stages = "the stages of a pipeline read files, {'stages.NAME.set.data.train.path': FILE}"
        raise ConfigError(f"data and eval_data are not of {recipe}, whose config has no part `data`: {stages}")
    return {"data": "native"} if part is not None and part.get("format") is Format.toy else {}


def _composed(recipe: str, asked: Mapping[str, Any]) -> RunConfig:
    words = _words(asked)
    with told_as_one_line(words):
        return resolve(single(recipe, words))


def _ready(recipe: str, asked: Mapping[str, Any]) -> RunConfig:
    words = _words(asked)
    with told_as_one_line(words):
        configs, is_sweep = checked(recipe, words, sweep=False)
        if is_sweep:
            raise ConfigError(f"alignment.run takes one run, and {recipe} is a sweep")
        require_scheduler(configs[0].cluster, Scheduler.local)
        say_advice(recipe, configs, words)
    return configs[0]


def _words(asked: Mapping[str, Any]) -> list[str]:
    return [f"{key}={written(require_plain(key, value))}" for key, value in asked.items()]


def _take_back(folder: Path, made: list[Path], there: set[Path]) -> None:
    """What was written for a run that has not begun: rows that no run reads, and folders that nothing else is in."""
    config = RunFolder(folder).config
    read = config.read_text() if config.exists() else ""
    for file in made:
        if file.name not in read:
            file.unlink(missing_ok=True)
    with suppress(OSError):  # it is not empty, or not there
        RunFolder(folder).rows.rmdir()
    remove_empty(folder, there)


def _finished(config: RunConfig) -> Run:
    folder = Path(config.output_dir)
    stages = config.stages if isinstance(config, PipelineConfig) else []
    return Run(folder, {stage.name: Run(folder / stage.name) for stage in stages})

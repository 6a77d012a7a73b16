"""A run and its folder: written once, finished once.

A folder holds `config.yaml`, `metrics.jsonl`, `checkpoints/`, `model/`, and `finished.json` when all is done. The
fingerprint in it is of the config and of the files that the run read; the same command on an unfinished folder goes on
from the newest checkpoint, on a finished one it has nothing to do.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import OmegaConf

from alignment import preempt
from alignment.config.inputs import check_inputs, function_files, input_paths
from alignment.config.parts import ConfigError, UserError, require
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import TASKS, PipelineConfig
from alignment.distributed import precision, world
from alignment.distributed.device import choose_kernels, keep_freed_memory, tell_deepspeed
from alignment.distributed.launch import RankFailedError, is_told, launch, tell_launcher
from alignment.distributed.settings import deepspeed_settings
from alignment.distributed.world import leave
from alignment.process import importing
from alignment.terminal import say
from alignment.training.checkpoint import seed_everything

__all__ = ["RankFailedError", "execute", "is_told", "leave"]  # what the command line needs of a run

UNMARKED = ("output_dir", "log", "checkpoint", "reference", "launch", "cluster")
DIVISION = {  # keys that divide the same work up in another way: a run goes on with others than it began with
    "batch": ("max_tokens",),
    "distributed": ("zero", "offload_optimizer", "offload_param", "nvme_path", "deepspeed_config", "timeout_minutes"),
    "generation": ("batch_size", "gather", "vllm"),
    "model": ("gradient_checkpointing",),
}
SUBMITTED = {"job.sbatch", "submitted.json", "logs"}


def task_name(config: RunConfig) -> str:
    return next(name for name, root in TASKS.items() if type(config) is root)


def execute(config: RunConfig) -> None:
    """Run one task in its folder, in this process or in the several that the config asks for.

    Raises:
        ConfigError: an input is missing, or the folder holds a run of another config.
        Preempted: the run was asked to stop; run again, it goes on.
        RankFailedError: one of several processes failed.
    """
    with preempt.one_run():
        _execute(config)


def _execute(config: RunConfig) -> None:
    assert not isinstance(config, PipelineConfig)
    check_inputs(config)
    device = world.pick_device(config.distributed.device)
    tell_deepspeed(device)
    check_processes(config)
    if config.launch.processes > 1 and not world.is_launched():
        in_processes(config)
        return
    tell_launcher()
    keep_freed_memory(device)
    choose_kernels(device, deterministic=config.distributed.deterministic)
    world.init(config.distributed)
    config = replace(config, output_dir=world.from_main(config.output_dir))  # which may hold the time
    folder = Path(config.output_dir)
    mark = fingerprint(config)
    if world.from_main(is_finished(folder, mark)):
        say(f"{folder}: finished already, nothing to do (another output_dir runs it again)")
        return
    run = imported(config)
    if world.is_main():
        start(folder, config, mark)
    world.barrier()
    seed_everything(config.seed)
    chosen = precision.said(config.distributed)
    if chosen is not None:
        say(chosen)
    try:
        stopped = run(config, folder)
    except UserError:
        if world.is_main():
            give_up(folder)
        raise
    world.barrier()
    if world.is_main():
        finish(folder, mark, stopped)


def imported(config: RunConfig) -> Callable[[Any, Path], str | None]:
    """The task, which may return why it stopped early. Only the process that runs it has need of transformers: not the
    one that starts several, nor one that finds the run finished.

    Raises:
        ConfigError: it is to be tracked by what is not installed.
    """
    with importing():
        task = import_module(f"alignment.tasks.{task_name(config)}")
        from alignment.training.trackers import check_trackers
    check_trackers(config.log.trackers)
    run: Callable[[Any, Path], str | None] = task.run
    return run


def check_processes(config: RunConfig) -> None:
    """Raises:
    ConfigError: the config does not suit the number of processes, or DeepSpeed's own settings it names do not suit it.
    """
    launched, asked = world.num_launched(), config.launch.processes
    if world.is_launched():
        rule = f"launch.processes must be 1, or the {launched} processes that were started for it"
        require(asked in (1, launched), rule, asked)
    max_grad_norm = None
    if isinstance(config, TrainingConfig):
        config.check_shares(max(launched, asked))
        max_grad_norm = config.train.max_grad_norm
    if config.distributed.zero is not None:
        deepspeed_settings(config.distributed, max_grad_norm=max_grad_norm)


def in_processes(config: RunConfig) -> None:
    """The run in `launch.processes` processes, each of which is given the config as it is resolved here."""
    with TemporaryDirectory() as folder:
        recipe = Path(folder) / "config.yaml"
        recipe.write_text(as_recipe(config))
        try:
            launch(["-m", "alignment", "run", str(recipe)], config.launch.processes)
        except UserError:
            give_up(Path(config.output_dir))
            raise


def start(folder: Path, config: RunConfig, mark: str) -> None:
    """Claim the folder and write the resolved config into it."""
    if not belongs_to(folder, mark):
        raise ConfigError(f"output_dir holds a run of another config or other inputs, got {str(folder)!r}")
    write_config(folder, config)
    _write_mark(folder / "started.json", mark)


def write_config(folder: Path, config: RunConfig) -> None:
    """The resolved config, as a recipe: `alignment run FOLDER/config.yaml` runs it again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output_dir must be a folder that can be made ({error.strerror}), got {str(folder)!r}"
        ) from error
    text = as_recipe(config)
    path = folder / "config.yaml"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def as_recipe(config: RunConfig) -> str:
    task = f"defaults:\n  - task: {task_name(config)}\n  - _self_\n\n"
    return task + OmegaConf.to_yaml(OmegaConf.structured(config))


def give_up(folder: Path) -> None:
    """Leave nothing behind of a run that a user's mistake ended before it had done anything.

    What a submission to a cluster wrote stays, for the mistake is told in its log; the claim on the folder goes.
    """
    if not folder.exists():
        return
    left = {path.name for path in folder.iterdir()}
    own = {"config.yaml", "started.json", "checkpoints"}
    if left <= own | SUBMITTED and not any(folder.glob("checkpoints/*")):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "started.json").unlink(missing_ok=True)
        if left <= own:
            shutil.rmtree(folder)


def belongs_to(folder: Path, mark: str) -> bool:
    """No run has claimed the folder, or one with this fingerprint has."""
    claim = folder / "started.json"
    return not claim.exists() or json.loads(claim.read_text())["fingerprint"] == mark


def finish(folder: Path, mark: str, stopped: str | None = None) -> None:
    """`stopped`: why the run ended before its last step, if its config asked for that."""
    _write_mark(folder / "finished.json", mark, **({} if stopped is None else {"stopped": stopped}))


def _write_mark(path: Path, mark: str, **more: str) -> None:
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps({"fingerprint": mark, **more}))
    beside.replace(path)


def is_finished(folder: Path, mark: str) -> bool:
    path = folder / "finished.json"
    return path.exists() and json.loads(path.read_text())["fingerprint"] == mark


def fingerprint(config: RunConfig) -> str:
    """Of the package, the config, but for what does not change its outcome, the state of every file it reads, and the
    text of the modules that hold its functions."""
    settings = {name: value for name, value in asdict(config).items() if name not in UNMARKED}
    for part, keys in DIVISION.items():
        if part in settings:
            settings[part] = {name: value for name, value in settings[part].items() if name not in keys}
    inputs = {key: _state(Path(path)) for key, path in input_paths(config) if not key.startswith("distributed.")}
    functions = {key: hashlib.sha256(file.read_bytes()).hexdigest() for key, file in function_files(config)}
    everything = [version("preference-alignment"), settings, inputs, functions]
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file of an input; of a run's folder, its finish stands for all of it."""
    finished = path / "finished.json"
    if finished.exists():
        files = [finished]
    else:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [(str(file.relative_to(path.parent)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]

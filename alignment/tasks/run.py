"""One run: in its folder, in this process or in several, finished once.

The same command on an unfinished folder goes on from the newest checkpoint, on a finished one it has nothing to do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch

from alignment import preempt
from alignment.config.distributed import Precision
from alignment.config.errors import ConfigError, UserError, require
from alignment.config.evaluate import EvaluateConfig
from alignment.config.generation import require_gpu
from alignment.config.optimizer import require_pages
from alignment.config.outside import is_outside
from alignment.config.packages import generation_of, require_packages
from alignment.config.quantizable import require_quantizable
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import PipelineConfig, RejectionConfig, task_name
from alignment.distributed import collectives
from alignment.distributed.collectives import leave
from alignment.distributed.device import choose_kernels, keep_freed_memory, tell_deepspeed
from alignment.distributed.launch import RankFailedError, launch, leave_with_launcher, tell_launcher
from alignment.distributed.precision import precision_note, precision_of
from alignment.distributed.settings import check_trainer, deepspeed_settings
from alignment.hub.pin import given_pins, pinned, pins_of
from alignment.process import importing, is_launched
from alignment.runs.claim import claim, life_of
from alignment.runs.disk import told_of_disk
from alignment.runs.endings import NotedEnding, note_ending
from alignment.runs.fingerprint import Fingerprint, fingerprint
from alignment.runs.folder import RunFolder
from alignment.runs.leftovers import claimed, clear, clearing, give_up, present
from alignment.runs.lifecycle import BATCHED, as_recipe, finish, is_finished, require_goes_on, start
from alignment.runs.place import require_place
from alignment.tasks.card import write_cards
from alignment.tasks.ending import say_ending
from alignment.terminal import say
from alignment.training.generators import seed_everything

__all__ = ["RankFailedError", "execute", "leave", "leave_with_launcher"]  # what the command line needs of a run


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
    config = pinned(config)
    require_packages(config)
    require_quantizable(config)
    require_place(config)
    device = device_of(config)
    tell_deepspeed(device)
    check_processes(config)
    if config.launch.processes > 1 and not is_launched():
        in_processes(config)
        return
    tell_launcher()
    keep_freed_memory(device)
    choose_kernels(device, deterministic=config.distributed.deterministic)
    collectives.init(config.distributed)
    with collectives.naming_rank():
        _take_part(config)


def _take_part(config: RunConfig) -> None:
    """The run in this process, one of several whose group is joined."""
    config = replace(config, output_dir=collectives.from_main(config.output_dir))  # which may hold the time
    pins = collectives.from_main(pins_of(config) if collectives.is_main() else None)
    assert pins is not None
    with collectives.one_of_machine_first():
        config = given_pins(config, pins)
    folder = RunFolder(config.output_dir)
    mark = collectives.from_main(fingerprint(config) if collectives.is_main() else None)
    assert mark is not None
    if _is_done(folder, mark):
        return
    if collectives.is_main():
        require_goes_on(folder, config, mark)
    run, before = imported(config), present(folder)
    _require_model(config)
    with claimed(folder, before) if collectives.is_main() else nullcontext():
        if not _is_done(folder, mark):  # as another process may have had it while this one imported
            config = _with_max_tokens(config)  # which start keeps
            if collectives.is_main():
                start(folder, config, mark)
            seen_to = _seen_to(folder, before) if collectives.is_main() else nullcontext()
            with seen_to, preempt.unwrapped(), told_of_disk(folder.path):
                _carry_out(run, config, folder, mark)


@contextmanager
def _seen_to(folder: RunFolder, before: set[Path]) -> Iterator[None]:
    with NotedEnding(folder), clearing(folder, before):  # which makes room for the note
        yield


def _is_done(folder: RunFolder, mark: Fingerprint) -> bool:
    is_done = collectives.from_main(is_finished(folder, mark))
    if is_done:
        say(f"{folder.path}: finished already, nothing to do (another output_dir runs it again)")
        for line in folder.left():
            say(line)
    return is_done


def _carry_out(run: Callable[[Any, Path], str | None], config: RunConfig, folder: RunFolder, mark: Fingerprint) -> None:
    collectives.barrier()
    seed_everything(config.seed)
    say_precision(config)
    try:
        stopped = _beside_server(run, config, folder) if config.launch.vllm else run(config, folder.path)
    except SystemExit as error:  # of a task from outside, whose exit code would be the run's
        raise UserError(f"{task_name(config)} ended by sys.exit({error.code!r}) before its run was finished") from error
    collectives.barrier()
    if collectives.is_main():
        if isinstance(config, TrainingConfig):
            write_cards(config, folder.path)
        finish(folder, mark, stopped)
        say_ending(config, folder.path, stopped)


def _beside_server(run: Callable[[Any, Path], str | None], config: RunConfig, folder: RunFolder) -> str | None:
    from alignment.tasks.serving import serving  # not above: it reads a model's config

    with serving(config, folder) as served:
        return run(served, folder.path)


def _with_max_tokens(config: RunConfig) -> RunConfig:
    if isinstance(config, BATCHED) and config.batch.max_tokens is None:
        from alignment.tasks.max_tokens import with_max_tokens  # not above: it builds models

        return with_max_tokens(config)
    return config


def _require_model(config: RunConfig) -> None:
    """What can be said of the models before one is read."""
    from alignment.tasks.room import require_room  # not above: these import what reads models
    from alignment.tasks.rows import require_one_pass
    from alignment.training.fp8 import require_fp8
    from alignment.training.parameter_groups import require_own_head

    require_fp8(config)
    require_one_pass(config)
    require_room(config)
    if isinstance(config, TrainingConfig):
        require_own_head(config)


def say_precision(config: RunConfig) -> None:
    """Of a run that trains, and wherever what was picked is not full precision, which moves the figures."""
    note, is_full = precision_note(config.distributed), precision_of(config.distributed) is Precision.float32
    if note is not None and (isinstance(config, TrainingConfig) or not is_full):
        say(note)


def imported(config: RunConfig) -> Callable[[Any, Path], str | None]:
    """The task, which may return why it stopped early. Only the process that runs it has need of transformers: not the
    one that starts several, nor one that finds the run finished."""
    with importing():
        run: Callable[[Any, Path], str | None] = task_module(config).run
    if config.log.trackers and isinstance(config, RejectionConfig | EvaluateConfig):
        say(f"log.trackers: {task_name(config)} trains nothing, so that no metrics go there")
    return run


def task_module(config: RunConfig) -> ModuleType:
    """The page of the task, in the package or the user's own."""
    name = task_name(config)
    return import_module(name if is_outside(name) else f"alignment.tasks.{name}")


def device_of(config: RunConfig) -> torch.device:
    """Raises:
    ConfigError: the run needs a GPU, and there is none.
    """
    device, generation = collectives.pick_device(config.distributed.device), generation_of(config)
    if generation is not None:
        require_gpu(generation, device.type)
    if isinstance(config, TrainingConfig):
        require_pages(config.train.optimizer, device.type)
    return device


def check_processes(config: RunConfig) -> None:
    """Raises:
    ConfigError: the config does not suit the number of processes, or DeepSpeed's own settings it names do not suit it.
    """
    launched, asked = collectives.num_launched(), config.launch.processes
    if is_launched():
        rule = f"launch.processes must be 1, or the {launched} processes that were started for it"
        require(asked in (1, launched), rule, asked)
    max_grad_norm = None
    if isinstance(config, TrainingConfig):
        config.check_processes(max(launched, asked))
        max_grad_norm = config.train.max_grad_norm
        if config.distributed.deepspeed_config is not None:
            check_trainer(config.distributed.deepspeed_config, config.train)
    if config.distributed.zero is not None:
        deepspeed_settings(config.distributed, max_grad_norm=max_grad_norm)


def in_processes(config: RunConfig) -> None:
    """The run in `launch.processes` processes, each of which is given the config as it is resolved here."""
    made = RunFolder(config.output_dir)
    before = present(made)
    with TemporaryDirectory() as folder:
        recipe = RunFolder(folder).config
        recipe.write_text(as_recipe(config))
        try:
            launch(["-m", "alignment", "run", str(recipe)], config.launch.processes)
        except (UserError, RankFailedError) as error:
            if made.path.exists():
                is_told = life_of(made.path) is None  # the main process has gone in peace, and has noted it
                with suppress(ConfigError), claim(made.path):
                    clear(made)
                    if isinstance(error, UserError):
                        give_up(made, before)
                    if not is_told:
                        note_ending(made, error)
            raise

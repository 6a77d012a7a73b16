"""The verb `run`: every config of the command is composed and checked, then the first job starts."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import main as hydra_main
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from alignment.cli.advice import advice, require_one_rate
from alignment.cli.compose import (
    SETTINGS,
    VERSION_BASE,
    chosen,
    compose,
    composing,
    is_sweep,
    resolve,
    root_of,
    single,
    swept,
)
from alignment.cli.config_errors import COMPOSE_ERRORS, error_line, explain, told_by
from alignment.cli.help import page
from alignment.cli.memory import told_of_memory
from alignment.cli.reach import within_reach
from alignment.cli.recipes import shipped
from alignment.cli.sources import SWEEP
from alignment.cli.stages import speak_as_typed
from alignment.config.cluster import Scheduler, require_scheduler
from alignment.config.errors import UserError, error_prefix
from alignment.config.inputs import check_inputs
from alignment.config.run import RunConfig
from alignment.config.tasks import PipelineConfig
from alignment.hub.pin import pinned
from alignment.preempt import EXIT_CODE, Preempted
from alignment.process import end
from alignment.runs.disk import told_of_disk
from alignment.runs.folder import RunFolder
from alignment.runs.leftovers import leaving_no_record
from alignment.runs.place import require_place, require_sweep_place
from alignment.terminal import say
from alignment.user_error import USER_ERROR, fail


def run_recipe(
    recipe: str, overrides: list[str], own: list[Path], *, sweep: bool, typed: Mapping[str, str] | None = None
) -> None:
    """`own`: the user's folders of recipes and presets. `typed`: of a verb that sets keys, what its user has typed for
    each."""
    typed = typed or {}
    with composing(own, recipe):
        try:
            configs, sweep = checked(recipe, overrides, sweep=sweep)
            for config in configs:
                require_scheduler(config.cluster, Scheduler.local)
            say_advice(recipe, configs, overrides)
            overrides = chosen(recipe, overrides)
        except COMPOSE_ERRORS as error:
            fail(f"{recipe}: {told_by(error_line(error, overrides), typed)}")
        if not sweep:
            start(recipe, configs[0], typed)
    if sweep:
        if isinstance(configs[0], PipelineConfig):
            speak_as_typed([stage.name for stage in configs[0].stages])
        with leaving_no_record(RunFolder(configs[0].output_dir), SWEEP, USER_ERROR) as folders:
            from alignment.tasks.ending import say_sweep

            def noted_job(composed: DictConfig) -> None:
                folders.append(Path(resolve(composed).output_dir))
                run_job(composed)

            _call_hydra(recipe, ["--multirun"], overrides, noted_job)
            say_sweep(folders)
    from alignment.tasks.run import leave  # loaded by the jobs already

    leave()


def checked(recipe: str, overrides: list[str], *, sweep: bool) -> tuple[list[RunConfig], bool]:
    """The config of each job, its inputs and folder found good; whether they are a sweep. Works within `composing`."""
    jobs, sweep = _jobs(recipe, overrides, sweep=sweep)
    configs = [resolve(job) for job in jobs]
    for number, config in enumerate(configs):
        check_inputs(config)
        require_place(of_job(config, number) if sweep else config)
        if sweep:
            require_sweep_place(Path(config.output_dir), SWEEP)
            _check_stages(of_job(config, number), number)
    return [pinned(each, folder=of_job(each, n).output_dir if sweep else None) for n, each in enumerate(configs)], sweep


def _check_stages(config: RunConfig, number: int) -> None:
    """Of one job of a sweep, which would find out only when its turn comes.

    Raises:
        ConfigError: it is a pipeline, and a stage of it is wrong.
    """
    if isinstance(config, PipelineConfig):
        from alignment.tasks.pipeline import composed_stages

        with error_prefix(f"job {number}"):
            composed_stages(config, compose)


def say_advice(recipe: str, configs: list[RunConfig], overrides: list[str]) -> None:
    """Once, however many jobs are advised so."""
    own_rate = any(word.lstrip("+").startswith("train.learning_rate=") for word in overrides)
    for config in configs:
        require_one_rate(config, own_rate=own_rate)
    for line in dict.fromkeys(line for config in configs for line in advice(recipe, config, own_rate=own_rate)):
        say(line)


def composed_stage(recipe: str, overrides: dict[str, Any]) -> RunConfig:
    """`compose`, with the advice on a stage that takes a model from outside of its pipeline."""
    config = compose(recipe, overrides)
    own_rate = "train.learning_rate" in overrides or "learning_rate" in overrides.get("train", {})
    require_one_rate(config, own_rate=own_rate)
    for line in advice(recipe, config, own_rate=own_rate, within=Path(config.output_dir).parent):
        say(line)
    return config


def _jobs(recipe: str, overrides: list[str], *, sweep: bool) -> tuple[list[DictConfig], bool]:
    """The composed jobs, and whether they are a sweep: by -m, or because the recipe says so."""
    if not sweep:
        try:
            job = single(recipe, overrides)
        except HydraException:
            if not is_sweep(recipe, overrides):
                raise
        else:
            if job.hydra.mode is not RunMode.MULTIRUN:
                return [job], False
    return swept(recipe, overrides), True


def print_config(
    recipe: str, overrides: list[str], own: list[Path], *, cfg: str, resolve: bool, package: str | None
) -> None:
    flags = ["--cfg", cfg, *(["--resolve"] if resolve else []), *(["--package", package] if package else [])]
    try:
        with composing(own):
            composed, overrides = single(recipe, overrides), chosen(recipe, overrides)
            _compose_stages(composed)
        _call_hydra(recipe, flags, overrides, run_job)
    except COMPOSE_ERRORS as error:
        fail(f"{recipe}: {explain(error)}")


def _compose_stages(composed: DictConfig) -> None:
    """Of a pipeline for which nothing lacks: what is wrong with a stage is told before it is shown."""
    if root_of(composed) is not PipelineConfig:
        return
    HydraConfig.instance().set_config(composed)
    if all(key.startswith("hydra.") for key in OmegaConf.missing_keys(composed)):
        from alignment.tasks.pipeline import stages_of

        config = resolve(composed)
        assert isinstance(config, PipelineConfig)
        stages_of(config, compose)


def print_help(recipe: str, overrides: list[str], own: list[Path], groups: list[str]) -> None:
    """Of the keys of `groups` alone where there are any."""
    with composing(own):
        try:
            composed = single(recipe, overrides)
            root_of(composed)
            print(page(recipe, composed, [*own, shipped("recipes"), shipped("conf")], groups))
        except COMPOSE_ERRORS as error:
            fail(f"{recipe}: {explain(error)}")


def _call_hydra(recipe: str, flags: list[str], overrides: list[str], job: Callable[[DictConfig], None]) -> None:
    """Hydra's own command line, for what it does best: sweeps, launchers, printing."""
    sys.argv = [sys.argv[0], "--config-name", recipe, *flags, *SETTINGS, *overrides]
    logging.raiseExceptions = False  # of jobs that it logs when nobody reads on
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed over many lines
    hydra_main(version_base=VERSION_BASE, config_path=str(shipped("conf")), config_name=recipe)(job)()


def run_job(composed: DictConfig) -> None:
    """One job of a sweep, in a folder of its own within the sweep's; on a cluster this runs on the node."""
    job = HydraConfig.get().job
    start(str(job.config_name), of_job(resolve(composed), job.num), {})


def of_job(config: RunConfig, number: int) -> RunConfig:
    return replace(config, output_dir=f"{config.output_dir}/{number}")


@within_reach()
def carry_out(config: RunConfig) -> None:
    """The run, or the stages of a pipeline, within `composing`. Raises as `execute`, and UserError for a mistake that
    shows only in the data or the models."""
    from alignment.tasks import pipeline
    from alignment.tasks.run import execute

    with told_of_disk(Path(config.output_dir)):
        if isinstance(config, PipelineConfig):
            pipeline.run(config, composed_stage)
        else:
            with told_of_memory(config):
                execute(config)


def start(recipe: str, config: RunConfig, typed: Mapping[str, str]) -> None:
    """A user's mistake that only shows in the data or the models ends here in one line, anything else in a traceback.

    The tasks are imported only now: a mistake in a config is told before transformers is loaded.
    """
    from alignment.tasks.run import RankFailedError, leave_with_launcher

    try:
        carry_out(config)
    except UserError as error:
        if leave_with_launcher(error, is_user_error=True):
            end(USER_ERROR)
        fail(f"{recipe}: {told_by(str(error), typed)}")
    except Preempted as stop:
        if leave_with_launcher(stop, is_user_error=True):  # the command that launched this process goes on from here
            end(EXIT_CODE)
        written = RunFolder(config.output_dir).config  # the recipe's own name may lead to another folder next time
        how = f"alignment run {written}" if written.exists() else "the same command"
        raise Preempted(f"{recipe}: {stop}; to go on: {how}") from None
    except RankFailedError as error:
        print(f"alignment: {recipe}: {error}", file=sys.stderr)
        sys.exit(error.code)

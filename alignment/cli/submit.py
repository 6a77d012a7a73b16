"""The verb `submit`: the config is composed and checked as by `run`, frozen, and a job for it handed to sbatch."""

from pathlib import Path

from alignment.cli.compose import compose, composing
from alignment.cli.config_errors import COMPOSE_ERRORS, error_line
from alignment.cli.run import checked, say_advice
from alignment.config.errors import UserError
from alignment.config.run import RunConfig
from alignment.config.tasks import PipelineConfig
from alignment.runs.folder import RunFolder
from alignment.slurm.jobs import Planned, plan_pipeline, plan_run, plan_sweep
from alignment.user_error import fail


def submit_recipe(recipe: str, overrides: list[str], own: list[Path], *, sweep: bool, dry_run: bool) -> None:
    """`own`: the user's folders of recipes and presets."""
    with composing(own, recipe):
        try:
            configs, sweep = checked(recipe, overrides, sweep=sweep)
            planned, whole = _plan(recipe, configs, sweep=sweep)
            if not dry_run:
                say_advice(recipe, configs, overrides)
        except COMPOSE_ERRORS as error:
            fail(f"{recipe}: {error_line(error, overrides)}")
    if dry_run:
        _show(planned)
        return
    from alignment.slurm.submit import hand_over

    try:
        hand_over(planned, whole=whole)
    except UserError as error:
        fail(f"{recipe}: {error}")


def _plan(recipe: str, configs: list[RunConfig], *, sweep: bool) -> tuple[list[Planned], RunConfig]:
    """What is handed over, and the config of the whole: of a sweep that of its first job."""
    if sweep:
        return plan_sweep(recipe, configs), configs[0]
    if not isinstance(configs[0], PipelineConfig):
        return plan_run(recipe, configs[0]), configs[0]
    from alignment.tasks.pipeline import composed_stages

    config, stages = composed_stages(configs[0], compose)
    return plan_pipeline(recipe, stages), config


def _show(planned: list[Planned]) -> None:
    """A single script as it is, so that it can be redirected; of several each with its file and what it waits for."""
    for job in planned:
        if len(planned) > 1:
            after = ", ".join(str(other.folder) for other in job.after)
            print(f"==> {RunFolder(job.folder).script}{f', after {after}' if after else ''} <==")
        print(job.script)

"""A pipeline: named stages, one after the other, that may use each other's folders.

All stages are composed and checked before the first one starts. Run again, it skips what has not changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from alignment.config.cluster import Scheduler, require_scheduler
from alignment.config.errors import ConfigError, UserError, require
from alignment.config.inputs import check_inputs, take_models
from alignment.config.packages import require_packages
from alignment.config.run import RunConfig
from alignment.config.tasks import STAGE, PipelineConfig, StageConfig
from alignment.distributed.collectives import num_launched
from alignment.hub.commits import Commits, kept
from alignment.hub.pin import ask, pinned
from alignment.runs.claim import claim
from alignment.runs.commits import moved
from alignment.runs.fingerprint import fingerprint
from alignment.runs.folder import RunFolder
from alignment.runs.leftovers import give_up, present
from alignment.runs.lifecycle import belongs_to, is_finished, is_steered, why_other, write_config
from alignment.runs.place import require_place
from alignment.tasks.ending import say_ending
from alignment.tasks.run import execute
from alignment.terminal import console, say

Compose = Callable[[str, dict[str, Any]], RunConfig]
"""(recipe, overrides by dotted key) -> the checked config; the command line brings it, which alone knows Hydra."""


def run(config: PipelineConfig, compose: Compose) -> None:
    """Raises:
    ConfigError: a stage's config is wrong, it refers to no earlier stage, or a file it reads is missing; or this is
        one of several processes, which would all begin the stages.
    """
    rule = "a pipeline starts the processes of its stages itself (launch.processes), so no launcher must be around it"
    require(num_launched() == 1, rule, f"{num_launched()} processes")
    config, stages = composed_stages(config, compose)
    for stage, stage_config in stages:
        with _named(stage):
            require_scheduler(stage_config.cluster, Scheduler.local)
    folder = RunFolder(config.output_dir)
    before = present(folder)
    with claim(folder.path):
        write_config(folder, config)
        try:
            _run_stages(stages)
        except UserError:
            give_up(folder, before)
            raise
    say_ending(config, Path(config.output_dir), None)


def _run_stages(stages: list[tuple[StageConfig, RunConfig]]) -> None:
    for number, (stage, stage_config) in enumerate(stages, start=1):
        console.rule(f"{number}/{len(stages)} {stage.name} ({stage.recipe})")
        if stage.about:
            say(stage.about)
        take_models(stage_config)  # of the stages before it, whose models are there by now
        folder = RunFolder(stage_config.output_dir)
        mark = fingerprint(stage_config)
        if is_finished(folder, mark):
            say("unchanged, skipped")
            continue
        if not belongs_to(folder, mark) and not is_steered(stage_config):
            for key, was, name in moved(folder.config, stage_config):
                say(f"{key}: {name.repo} is at {name.revision}, where this stage began with {was}")
            put_aside(folder.path, why_other(folder, mark))
        execute(stage_config)


def composed_stages(
    config: PipelineConfig, compose: Compose
) -> tuple[PipelineConfig, list[tuple[StageConfig, RunConfig]]]:
    """The pipeline with the commit of each name on the hub that its stages read, as its folder has kept it or as it is
    now; and each stage that is not left out with its checked config, whose references to earlier stages are paths. What
    it reads is there, or made by a stage before it.

    Raises:
        ConfigError: as `run`.
    """
    read = {name for stage in config.stages for name in _referred(stage.set)}
    for name in config.inputs.keys() - read:
        raise ConfigError(f"inputs.{name} is read by no stage, which would refer to it as `{STAGE}{name}`")
    stages, commits = stages_of(config, compose), kept(config.output_dir)
    commits.give(config.commits)
    for stage, composed in stages:
        with _named(stage):
            check_inputs(composed, but_within=config.output_dir)
            ask(composed, commits, but_within=config.output_dir)
    checked = [(stage, _checked(stage, composed, config, commits)) for stage, composed in stages]
    known = commits.known  # those of stages that are left out too
    if all(map(config.runs, config.stages)):
        for entry in config.commits.keys() - commits.read:
            raise ConfigError(f"commits.{entry} is of a name that no stage reads; leave it out")
        known = {entry: commit for entry, commit in known.items() if entry in commits.read}
    return replace(config, commits=known), checked


def stages_of(config: PipelineConfig, compose: Compose) -> list[tuple[StageConfig, RunConfig]]:
    """The same, whatever is there of what they read.

    Raises:
        ConfigError: a stage's config is wrong, or it refers to no earlier stage.
    """
    return [(stage, _composed(stage, config, compose)) for stage in config.stages if config.runs(stage)]


def _checked(stage: StageConfig, composed: RunConfig, config: PipelineConfig, commits: Commits) -> RunConfig:
    left_out = {each.name for each in config.stages if not config.runs(each)}
    with _named(stage):
        for name in sorted(left_out & set(_referred(stage.set))):
            folder = Path(config.output_dir) / name
            if not RunFolder(folder).finished.exists():
                rule = f"it reads {STAGE}{name}, a stage that is left out and has no finished run in {str(folder)!r}"
                raise ConfigError(f"{rule}: run that one first, or with it")
        composed = pinned(composed, commits=commits, but_within=config.output_dir)
        require_packages(composed)
        require_place(composed)
    return composed


def _referred(value: Any) -> Iterator[str]:
    """The names of stages and inputs that a stage's settings refer to."""
    if isinstance(value, dict):
        yield from (name for inner in value.values() for name in _referred(inner))
    elif isinstance(value, str) and value.startswith(STAGE):
        yield value.removeprefix(STAGE).partition("/")[0]


def _composed(stage: StageConfig, config: PipelineConfig, compose: Compose) -> RunConfig:
    earlier = config.stages[: config.stages.index(stage)]
    paths = {other.name: f"{config.output_dir}/{other.name}" for other in earlier} | config.inputs
    with _named(stage):
        overrides = {key: _resolved(key, value, paths) for key, value in stage.set.items()}
        inside = {"output_dir": f"{config.output_dir}/{stage.name}", "seed": config.seed}
        composed = compose(stage.recipe, inside | _passed_on(config) | overrides)
        if isinstance(composed, PipelineConfig):
            raise ConfigError(f"recipe must not be a pipeline itself, got {stage.recipe!r}")
    return composed


@contextmanager
def _named(stage: StageConfig) -> Iterator[None]:
    """A mistake in a stage's config is told with the stage's name."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"stage {stage.name}: {error}") from error


def _passed_on(config: PipelineConfig) -> dict[str, Any]:
    """What the pipeline's own `distributed`, `launch`, `log` and `cluster` say beyond the defaults; a stage's `set` has
    the last word."""
    parts: dict[str, Any] = {
        "distributed": config.distributed,
        "launch": config.launch,
        "log": config.log,
        "cluster": config.cluster,
    }
    return {
        f"{part}.{field.name}": getattr(asked, field.name)
        for part, asked in parts.items()
        for field in fields(asked)
        if getattr(asked, field.name) != getattr(type(asked)(), field.name)
    }


def _resolved(key: str, value: Any, paths: dict[str, str]) -> Any:
    """`@sft/model` -> the path of `model` in the folder of the stage `sft`, also within a mapping. paths: name -> path,
    of the earlier stages and the inputs."""
    if isinstance(value, dict):
        return {name: _resolved(f"{key}.{name}", inner, paths) for name, inner in value.items()}
    if not isinstance(value, str) or not value.startswith(STAGE):
        return value
    name, slash, rest = value.removeprefix(STAGE).partition("/")
    if name not in paths:
        known = ", ".join(paths) or "there is none"
        raise ConfigError(f"{key} must refer to an earlier stage or one of inputs ({known}), got {value!r}")
    return f"{paths[name]}{slash}{rest}"


def put_aside(folder: Path, why: str) -> Path:
    """Give a folder that holds another config's run another name, which is returned. why: what has changed.

    Raises:
        FolderInUse: that run is at work.
    """
    aside = next(path for n in range(1, 10_000) if not (path := folder.with_name(f"{folder.name}.old-{n}")).exists())
    with claim(folder):
        folder.rename(aside)
    say(f"changed since it was run ({why}); the old one is kept in {aside}")
    return aside

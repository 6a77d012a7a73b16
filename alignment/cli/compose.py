"""From YAML and overrides to a checked dataclass: Hydra composes, this module closes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignment.cli.config_errors import COMPOSE_ERRORS, explain
from alignment.cli.entries import by_mapping
from alignment.cli.overrides import written
from alignment.cli.recipes import find_recipe, is_path, shipped
from alignment.cli.sources import SearchPath, parts, register, schema
from alignment.cli.stage_keys import require_no_stage_keys
from alignment.cli.stages import by_name, with_files
from alignment.cli.typed import leave_shape_unread, require_init_read, require_shape_read, with_one_length
from alignment.config.errors import ConfigError
from alignment.config.inputs import expand_home, take_models
from alignment.config.run import RunConfig
from alignment.config.tasks import TASKS, PipelineConfig
from alignment.hub.ask import forget
from alignment.runs.place import running_recipe

VERSION_BASE = "1.3"
NO_TASK = f"a recipe's defaults must name its task, one of {', '.join(TASKS)}, got none"
SETTINGS = (  # the run's folder is written by our own code (runs/lifecycle.py) alone
    *("hydra.run.dir=.", "hydra.sweep.dir=${output_dir}", "hydra.sweep.subdir=."),
    *("hydra.output_subdir=null", "hydra/job_logging=none"),
)


@contextmanager
def composing(own: list[Path], recipe: str = "") -> Iterator[None]:
    """Where `single`, `swept` and `compose` work: Hydra set up with the user's folders before the shipped ones. recipe:
    the name of the one that is run, if any is, whose file may lie in the run's folder."""
    forget()  # what the hub has said to an earlier command in this process
    with _set_up(own, recipe):
        yield


@contextmanager
def _set_up(own: list[Path], recipe: str) -> Iterator[None]:
    register(own)
    with initialize_config_dir(str(shipped("conf")), version_base=VERSION_BASE), running_recipe(recipe, own):
        yield


@contextmanager
def beside_others() -> Iterator[None]:
    """Inside, Hydra is ours, and afterwards as it was: a program that calls us may have it at work for itself."""
    is_used = GlobalHydra.instance().is_initialized()
    before = Singleton.get_state() if is_used else None
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().clear()
        if is_used:
            Singleton.set_state(before)


@contextmanager
def _looking_in(folders: list[Path]) -> Iterator[None]:
    """Inside, within `composing`, these are the user's folders."""
    outer, own = current_hydra(), SearchPath.own
    GlobalHydra.instance().hydra = None
    try:
        with _set_up(folders, ""):
            yield
    finally:
        SearchPath.own, GlobalHydra.instance().hydra = own, outer


def single(recipe: str, overrides: list[str]) -> DictConfig:
    """The composed config of one job."""
    with _seen_whole(recipe, overrides):
        return hydra_compose(recipe, [*SETTINGS, *chosen(recipe, overrides)], return_hydra_config=True)


@contextmanager
def _seen_whole(recipe: str, overrides: list[str]) -> Iterator[None]:
    """Inside, a key that there is not is told by what is wrong with the whole: a recipe without a task has no key at
    all, and a pipeline none of its stages' keys."""
    try:
        yield
    except (HydraException, OmegaConfBaseException):
        with suppress(HydraException, OmegaConfBaseException):
            bare = hydra_compose(recipe, [])
            try:
                if root_of(bare) is PipelineConfig:
                    require_no_stage_keys(overrides, _tasks_of_stages(bare))
            except ConfigError as error:
                raise error from None  # what went wrong before is but what came of it
        raise


def _tasks_of_stages(pipeline: DictConfig) -> dict[str, type[RunConfig] | None]:
    """Stage -> its task's dataclass; None where its recipe is a file, or is not to be read."""
    tasks: dict[str, type[RunConfig] | None] = {}
    for stage in pipeline.stages:
        tasks[stage.name] = None
        if not is_path(stage.recipe):
            with suppress(HydraException, OmegaConfBaseException, ConfigError):
                tasks[stage.name] = root_of(hydra_compose(stage.recipe, []))
    return tasks


def swept(recipe: str, overrides: list[str]) -> list[DictConfig]:
    """The composed config of each job of a sweep by Hydra's own sweeper; none where another one makes them up."""
    hydra = current_hydra()
    with _seen_whole(recipe, overrides):
        whole = hydra.compose_config(recipe, [*SETTINGS, *chosen(recipe, overrides)], run_mode=RunMode.MULTIRUN)
    if whole.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return []
    HydraConfig.instance().set_config(whole)
    OmegaConf.select(whole, "output_dir")  # which asks for the time, once: jobs have what is cached here
    params = [f"{key}={values}" for key, values in (whole.hydra.sweeper.params or {}).items()]
    parsed = OverridesParser.create(hydra.config_loader).parse_overrides([*params, *whole.hydra.overrides.task])
    split = BasicSweeper.split_arguments(parsed, None)
    with _seen_whole(recipe, overrides):
        jobs = [hydra.config_loader.load_sweep_config(whole, list(job)) for batch in split for job in batch]
    for composed in jobs:
        OmegaConf.update(composed, "hydra.mode", RunMode.MULTIRUN)  # as Hydra's launchers have it, for the run's name
    return jobs


def chosen(recipe: str, overrides: list[str]) -> list[str]:
    """The overrides as Hydra takes them: with stages by their numbers, entries in their mappings, and the + that it
    wants where a preset is of a group that the recipe's defaults lack."""
    overrides = with_one_length([by_mapping(override) for override in by_name(recipe, overrides)])
    groups = set(current_hydra().config_loader.get_group_options("", ObjectType.GROUP))
    if not groups & {override.partition("=")[0] for override in overrides}:
        return overrides
    lacking = groups - set(hydra_compose(recipe, [], return_hydra_config=True).hydra.runtime.choices)
    return [f"+{override}" if override.partition("=")[0] in lacking else override for override in overrides]


def is_sweep(recipe: str, overrides: list[str]) -> bool:
    """Whether the recipe itself asks for a sweep, as a launcher's preset does."""
    return current_hydra().get_mode(recipe, chosen(recipe, overrides)) is RunMode.MULTIRUN


def current_hydra() -> Hydra:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra


def compose(recipe: str, overrides: dict[str, Any]) -> RunConfig:
    """A recipe with overrides by dotted key, from within a run.

    Raises:
        ConfigError: whatever is wrong with it, in one line.
    """
    if is_path(recipe):
        name, folders = find_recipe(recipe, SearchPath.own)
        with _looking_in(folders):
            return compose(name, overrides)
    try:
        words = [f"{key}={written(value)}" for key, value in overrides.items()]
        return resolve(hydra_compose(recipe, chosen(recipe, words)), words)
    except COMPOSE_ERRORS as error:
        raise ConfigError(explain(error)) from error


def resolve(composed: DictConfig, overrides: Iterable[str] | None = None) -> RunConfig:
    """Composed YAML -> validated dataclass. `overrides` are what was typed of it; None: as Hydra noted it, ${...} too.

    It is merged again onto a fresh schema, because `+key=value` passes the first one.

    Raises:
        ConfigError: a required value is missing, or a value breaks a rule.
        OmegaConfBaseException: an unknown key, a wrong type.
    """
    root = root_of(composed)
    if "hydra" in composed:
        HydraConfig.instance().set_config(composed)
        overrides = overrides or cast(list[str], OmegaConf.to_container(composed.hydra.overrides.task, resolve=False))
    typed = list(overrides or ())
    given = {key: _plain(composed, key) for key in map(str, composed) if key != "hydra"}
    closed = cast(DictConfig, OmegaConf.merge(schema(root), given))
    missing = sorted(OmegaConf.missing_keys(closed))
    if missing:
        raise ConfigError(f"{missing[0]} is required, got nothing")
    leave_shape_unread(closed, typed)
    config = cast(RunConfig, _built(closed, ""))
    require_init_read(config, typed)
    expand_home(config)
    take_models(config)
    require_shape_read(config, typed)
    if isinstance(config, PipelineConfig):
        with_files(config.stages, SearchPath.own)
    return config


def root_of(composed: DictConfig) -> type[RunConfig]:
    """Its task's dataclass.

    Raises:
        ConfigError: it names no task, or a file of the user's stands in the place of one.
    """
    root = next((root for root in TASKS.values() if OmegaConf.get_type(composed) is root), None)
    if root is not None:
        return root
    own = (folder / "task" / f"{name}.yaml" for folder in SearchPath.own for name in TASKS)
    hiding = next((file for file in own if file.is_file()), None)
    if hiding is None:
        raise ConfigError(NO_TASK)
    way = f"give it another name, and let its defaults begin with {hiding.stem}"
    raise ConfigError(f"{hiding} stands in the place of the task {hiding.stem}: {way}")


def _plain(tree: DictConfig, key: str) -> Any:
    """A value with its interpolations filled in."""
    value = MISSING if OmegaConf.is_missing(tree, key) else tree[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _built(tree: DictConfig, key: str) -> Any:
    """The dataclasses of a tree, from the leaves to the root, so that a broken rule is told with its full key."""
    for name, node in parts(tree):
        inner = f"{key}.{name}".lstrip(".")
        if is_dataclass(OmegaConf.get_type(node)):
            _built(node, inner)
        else:  # a mapping of names that the user gives, perhaps to dataclasses
            for given, value in parts(node):
                if is_dataclass(OmegaConf.get_type(value)):
                    _built(value, f"{inner}.{given}")
    try:
        return OmegaConf.to_object(tree)
    except ValueError as error:
        message = str(error)
        if not key or f"{key}." in message:
            raise ConfigError(message) from error
        separator = "." if message.split()[0].partition(".")[0] in tree else ": "
        raise ConfigError(f"{key}{separator}{message}") from error

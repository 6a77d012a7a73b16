"""From YAML and overrides to a checked dataclass: Hydra composes, this module closes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignment.cli.config_errors import COMPOSE_ERRORS, explain
from alignment.cli.overrides import written
from alignment.cli.recipes import shipped
from alignment.config.inputs import expand_home
from alignment.config.outside import is_outside, learn_task
from alignment.config.run import RunConfig
from alignment.config.sections import ConfigError
from alignment.config.tasks import TASKS

VERSION_BASE = "1.3"
NO_TASK = f"a recipe's defaults must name its task, one of {', '.join(TASKS)}, got none"
SETTINGS = (  # the run's folder is ours, written by tasks/run.py; Hydra keeps its hands off it
    "hydra.run.dir=.",
    "hydra.sweep.dir=${output_dir}",
    "hydra.sweep.subdir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
)


class SearchPath(SearchPathPlugin):
    """The user's folders, the shipped presets (Hydra's own `main`), the shipped recipes, the tasks, in this order."""

    own: ClassVar[list[Path]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.own:
            search_path.prepend("own", f"file://{folder}", anchor="main")
        search_path.append("recipes", f"file://{shipped('recipes')}")
        search_path.append("tasks", "tasks://")


class TaskSource(ConfigSource):
    """The schemas of the tasks, which a recipe names as `task: dpo`, or by the dotted path of one from outside of the
    package. Each is made when it is asked for: a tree of all of them takes longer to make, and Hydra to copy with each
    composition, than a recipe to compose."""

    @staticmethod
    def scheme() -> str:
        return "tasks"

    def available(self) -> bool:
        return True

    def load_config(self, config_path: str) -> ConfigResult:
        root = _task_at(config_path)
        assert root is not None
        return ConfigResult(self.provider, self.full_path(), schema(root), {"package": "_global_"})

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in ("", "task")

    def is_config(self, config_path: str) -> bool:
        return _task_at(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        wanted = ObjectType.CONFIG if config_path.strip("/") else ObjectType.GROUP
        names = sorted(TASKS) if wanted is ObjectType.CONFIG else ["task"]
        return names if results_filter in (None, wanted) else []


def _task_at(config_path: str) -> type[RunConfig] | None:
    """What Hydra means by a path in the group `task`."""
    group, _, name = config_path.strip("/").removesuffix(".yaml").partition("/")
    if group != "task" or not name:
        return None
    return learn_task(name) if is_outside(name) else TASKS.get(name)


def register(own: list[Path]) -> None:
    """Tell Hydra where to look."""
    warnings.filterwarnings("ignore", message=".*Defaults list is missing `_self_`")  # it is last then, as one expects
    SearchPath.own = own
    for plugin in (SearchPath, TaskSource):
        Plugins.instance().register(plugin)


@contextmanager
def composing(own: list[Path]) -> Iterator[None]:
    """Where `single`, `swept` and `compose` work: Hydra set up with the user's folders before the shipped ones."""
    register(own)
    with initialize_config_dir(str(shipped("conf")), version_base=VERSION_BASE):
        yield


def single(recipe: str, overrides: list[str]) -> DictConfig:
    """The composed config of one job."""
    try:
        return hydra_compose(recipe, [*SETTINGS, *chosen(recipe, overrides)], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        _require_task(recipe)
        raise


def _require_task(recipe: str) -> None:
    """A recipe without a task has no key at all: that is what is wrong with it, whatever else it was asked for."""
    if _root(hydra_compose(recipe, [])) is None:
        raise ConfigError(NO_TASK) from None


def swept(recipe: str, overrides: list[str]) -> list[DictConfig]:
    """The composed config of each job of a sweep by Hydra's own sweeper; none where another one makes them up."""
    hydra = current_hydra()
    whole = hydra.compose_config(recipe, [*SETTINGS, *chosen(recipe, overrides)], run_mode=RunMode.MULTIRUN)
    if whole.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return []
    params = [f"{key}={values}" for key, values in (whole.hydra.sweeper.params or {}).items()]
    parsed = OverridesParser.create(hydra.config_loader).parse_overrides([*params, *whole.hydra.overrides.task])
    return [
        hydra.config_loader.load_sweep_config(whole, list(job))
        for batch in BasicSweeper.split_arguments(parsed, None)
        for job in batch
    ]


def chosen(recipe: str, overrides: list[str]) -> list[str]:
    """The overrides, with the + that Hydra wants where a preset is of a group that the recipe's defaults lack."""
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
    try:
        words = [f"{key}={written(value)}" for key, value in overrides.items()]
        return resolve(hydra_compose(recipe, chosen(recipe, words)))
    except COMPOSE_ERRORS as error:
        raise ConfigError(explain(error)) from error


def schema(root: type[RunConfig]) -> DictConfig:
    """The typed tree of a task: parts without a default in place, mappings open for the names that a user gives."""
    tree = OmegaConf.structured(root)
    for field in fields(root):
        if OmegaConf.is_missing(tree, field.name) and is_dataclass(field.type):
            tree[field.name] = OmegaConf.structured(field.type)
    _open_mappings(tree)
    return tree


def _open_mappings(tree: DictConfig) -> None:
    for _, node in parts(tree):
        if OmegaConf.get_type(node) is dict:
            OmegaConf.set_struct(node, False)
        else:
            _open_mappings(node)


def parts(tree: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """(name, node) of every mapping in it that is set."""
    for name in tree:
        node = None if OmegaConf.is_missing(tree, name) else tree._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none():
            yield str(name), node


def resolve(composed: DictConfig) -> RunConfig:
    """Composed YAML -> validated dataclass.

    It is merged again onto a fresh schema, because `+key=value` passes the first one.

    Raises:
        ConfigError: a required value is missing, or a value breaks a rule.
        OmegaConfBaseException: an unknown key, a wrong type.
    """
    root = _root(composed)
    if root is None:
        raise ConfigError(NO_TASK)
    if "hydra" in composed:
        HydraConfig.instance().set_config(composed)
    given = {key: _plain(composed, key) for key in map(str, composed) if key != "hydra"}
    closed = cast(DictConfig, OmegaConf.merge(schema(root), given))
    missing = sorted(OmegaConf.missing_keys(closed))
    if missing:
        raise ConfigError(f"{missing[0]} is required, got nothing")
    config = cast(RunConfig, _built(closed, ""))
    expand_home(config)
    return config


def _root(composed: DictConfig) -> type[RunConfig] | None:
    """Its task's dataclass; None where it names no task."""
    return next((root for root in TASKS.values() if OmegaConf.get_type(composed) is root), None)


def _plain(tree: DictConfig, key: str) -> Any:
    """A value with its interpolations filled in."""
    value = MISSING if OmegaConf.is_missing(tree, key) else tree[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _built(tree: DictConfig, key: str) -> Any:
    """The dataclasses of a tree, from the leaves to the root, so that a broken rule is told with its full key."""
    for name, node in parts(tree):
        if is_dataclass(OmegaConf.get_type(node)):
            _built(node, f"{key}.{name}".lstrip("."))
    try:
        return OmegaConf.to_object(tree)
    except ValueError as error:
        message = str(error)
        if not key or f"{key}." in message:
            raise ConfigError(message) from error
        separator = "." if message.split()[0] in tree else ": "
        raise ConfigError(f"{key}{separator}{message}") from error

"""Where Hydra looks: the user's folders, what is shipped, and the schemas of the tasks."""

import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import ClassVar

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignment.cli.names import register_names
from alignment.cli.recipes import shipped
from alignment.cli.source_lists import with_names
from alignment.config.errors import ConfigError
from alignment.config.outside import is_outside, learn_task
from alignment.config.run import RunConfig
from alignment.config.tasks import TASKS
from alignment.runs.folder import RunFolder

MADE: dict[type[RunConfig], DictConfig] = {}  # the schemas that have been asked for in this process
SWEEP = "multirun.yaml"  # which Hydra leaves where the runs of a sweep are


class SearchPath(SearchPathPlugin):
    """The user's folders, the shipped presets (Hydra's own `main`), the shipped recipes, the tasks, in this order."""

    own: ClassVar[list[Path]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.own:
            search_path.prepend("own", f"own://{folder}", anchor="main")
        search_path.append("recipes", f"file://{shipped('recipes')}")
        search_path.append("tasks", "tasks://")


class OwnFolder(FileConfigSource):
    """A folder of the user's. What lies there may be data and runs too: a folder is a group where it holds presets, or
    `reward=FILE` would choose among the files of a folder `reward` in place of setting the key."""

    @staticmethod
    def scheme() -> str:
        return "own"

    def is_group(self, config_path: str) -> bool:
        folder = Path(self.path, config_path)
        if not config_path.strip("/"):
            return folder.is_dir()
        presets = (file for file in folder.glob("*.yaml") if file.name != SWEEP)
        return any(presets) and not RunFolder(folder).started.exists()

    def load_config(self, config_path: str) -> ConfigResult:
        found = super().load_config(config_path)
        with_names(found.config)
        return found


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
        name = config_path.strip("/").removeprefix("task/")
        root = TASKS[name]  # which `is_config` has learned
        try:
            tree = schema(root)
        except OmegaConfBaseException as error:
            raise ConfigError(f"task: {root.__name__} of {name!r} cannot be a config: {error}") from None
        return ConfigResult(self.provider, self.full_path(), tree, {"package": "_global_"})

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
    group, _, name = config_path.strip("/").partition("/")
    if group != "task" or not name:
        return None
    return learn_task(name) if is_outside(name) else TASKS.get(name)


def register(own: list[Path]) -> None:
    """Tell Hydra where to look."""
    warnings.filterwarnings("ignore", message=".*Defaults list is missing `_self_`")  # it is last then, as one expects
    SearchPath.own = own
    register_names()
    for plugin in (SearchPath, OwnFolder, TaskSource):
        Plugins.instance().register(plugin)


def schema(root: type[RunConfig]) -> DictConfig:
    """The typed tree of a task: parts without a default in place, mappings open for the names that a user gives. The
    caller's own: a copy, which takes a fifth of the time that the tree takes to make."""
    if root not in MADE:
        MADE[root] = _tree(root)
    return deepcopy(MADE[root])


def _tree(root: type[RunConfig]) -> DictConfig:
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
        node = tree._get_node(name)  # not looked at: what it refers to may not be there
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()):
            yield str(name), node

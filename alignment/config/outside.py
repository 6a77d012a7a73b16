"""Tasks from outside of the package: a recipe names the module of one by its dotted path, `task: my_package.mine`."""

import sys
from dataclasses import is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import get_type_hints

from alignment.config.run import RunConfig
from alignment.config.sections import ConfigError
from alignment.config.tasks import TASKS

WAY = "it must be a module with a function run(config, folder), whose config is a dataclass like SFTConfig"


def is_outside(task: str) -> bool:
    """Whether it is a dotted path, and not the name of a task of ours."""
    return "." in task


def learn_task(path: str) -> type[RunConfig]:
    """The config of the task at a dotted path, from here on in `TASKS`: what the module's `run` takes.

    Raises:
        ConfigError: there is no such module, or it is no task. What the module itself raises is the user's to see.
    """
    if path in TASKS:
        return TASKS[path]
    if str(Path.cwd()) not in sys.path:  # a command does not look beside itself as `python -m` does
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # of what the module imports in its turn
        raise ConfigError(f"task: no module {path!r} ({error}); {WAY}") from error
    run = vars(module).get("run")
    if not callable(run):
        raise ConfigError(f"task: {path!r} has no function run; {WAY}")
    first = next(iter(signature(run).parameters), None)
    root = get_type_hints(run).get(first or "")
    if not (isinstance(root, type) and is_dataclass(root) and issubclass(root, RunConfig)):
        raise ConfigError(f"task: the first argument of {path}.run is {root!r}; {WAY}")
    TASKS[path] = root
    return root

"""Tasks from outside of the package: a recipe names the module of one by its dotted path, `task: my_package.mine`."""

import sys
import traceback
from dataclasses import is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import get_type_hints

from alignment.config.errors import ConfigError
from alignment.config.run import RunConfig
from alignment.config.tasks import TASKS
from alignment.user_error import nearest

# What a module of the user's may raise as it is read.
RAISED = (
    *(ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError),
    *(AssertionError, OSError, RuntimeError, MemoryError, SystemExit),
)
WAY = "it must be a module with a function run(config, folder), whose config is a dataclass derived from TrainingConfig"


def is_outside(task: str) -> bool:
    """Whether it is a dotted path, and not the name of a task of ours."""
    return "." in task


def learn_task(path: str) -> type[RunConfig]:
    """The config of the task at a dotted path, from here on in `TASKS`: what the module's `run` takes.

    Raises:
        ConfigError: there is no such module, it cannot be imported, or it is no task.
    """
    if path in TASKS:
        return TASKS[path]
    if not all(part.isidentifier() for part in path.split(".")):
        near = nearest(path.strip("."), TASKS)
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, or the dotted path of a module, got {path!r}{near}")
    if str(Path.cwd()) not in sys.path:  # a command does not look beside itself as `python -m` does
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise _broken(path, error) from error  # of what the module imports in its turn
        places = f"looked for in {Path.cwd()} and where PYTHONPATH says"
        raise ConfigError(f"task: no module {path!r} ({error}), {places}; {WAY}") from error
    except RAISED as error:
        raise _broken(path, error) from error
    run = vars(module).get("run")
    if not callable(run):
        raise ConfigError(f"task: {path!r} has no function run; {WAY}")
    first = next(iter(signature(run).parameters), None)
    try:
        root = get_type_hints(run).get(first or "")
    except RAISED as error:  # an annotation is any expression
        raise ConfigError(f"task: the annotations of {path}.run cannot be read: {error}; {WAY}") from error
    if not (isinstance(root, type) and is_dataclass(root) and issubclass(root, RunConfig)):
        raise ConfigError(f"task: the first argument of {path}.run is {root!r}; {WAY}")
    for other, taken in TASKS.items():  # by its class a config's task is known
        if root is taken:
            own = f"a class of its own, such as `@dataclass(slots=True) class Config({root.__name__}): pass`"
            raise ConfigError(f"task: the config of {path}.run is {root.__name__}, which is {other}'s: give it {own}")
    TASKS[path] = root
    return root


def _broken(path: str, error: BaseException) -> ConfigError:
    """With the line of the module, or of what it calls, that raised."""
    if isinstance(error, SyntaxError):
        file, line = error.filename, error.lineno
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        file, line = frame.filename, frame.lineno
    return ConfigError(f"task: {path!r} cannot be imported: {type(error).__name__}: {error} ({file}:{line})")

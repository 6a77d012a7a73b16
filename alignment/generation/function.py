"""A Python function of the user's that scores replies: found at its dotted path, asked once for all, and checked."""

import os
import random
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from sysconfig import get_path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from alignment.config.errors import ConfigError, UserError
from alignment.data.carried import Asked, Carried
from alignment.distributed.collectives import from_main, is_main
from alignment.distributed.device import own_draws
from alignment.generation.samples import Samples

ScoreFunction = Callable[..., list[float]]
"""(prompts as messages, replies as text) -> a number a reply. By further parameters, named as columns of the data, it
asks for what the prompts' rows have beside the dialogue: `def correct(prompts, replies, answer)`, a list of an answer
for each reply; `**columns` are all of them."""
LIBRARIES = [get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
LARGEST = torch.finfo(torch.float32).max


@dataclass(slots=True)
class FunctionScorer:
    """A Python function of (prompts, replies), and of columns of the prompts' rows."""

    function: ScoreFunction
    key: str = "reward.function"
    path: str = ""
    """The function's dotted path, where it came from one."""

    def score(self, samples: Samples) -> Tensor:
        """[G, n] float32 on the CPU."""
        return torch.tensor(self.answers(samples), dtype=torch.float32).view(len(samples.replies), -1)

    def answers(self, samples: Samples) -> list[float]:
        """[G * n], as the function gives them. Asked by the main process alone, of all replies at once: what it answers
        is everybody's, and so is its error.

        Raises:
            ConfigError: it does not give each reply a finite score, or raises an error of its own; names the key.
        """
        told = from_main(self._call(samples) if is_main() else [])
        if isinstance(told, UserError):
            raise told
        return told

    def _call(self, samples: Samples) -> list[float] | UserError:
        texts = samples.texts()
        prompts = [deepcopy(prompt) for prompt in samples.repeated_prompts()]  # what it changes is its own
        columns = {name: [deepcopy(each) for each in column] for name, column in samples.repeated_columns().items()}
        given = asked_columns(self.function).names(columns)
        try:
            with Theirs(f"{self.key} {self.path}".strip()):
                answer: object = self.function(prompts, texts, **{name: columns[name] for name in given})
            return numbers(answer, len(texts), self.key)
        except UserError as error:
            return error


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # removed, as a temporary one is
        return ""


def _enter(folder: str) -> None:
    with suppress(FileNotFoundError):
        os.chdir(folder)


def _made_on() -> torch.device | None:
    try:
        return torch.get_default_device()
    except (AssertionError, RuntimeError):  # of a kind that is not here
        return None


def _make_on(device: torch.device | None) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {  # of the process: read, and set
    "folder": (_folder, _enter),
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "device": (_made_on, _make_on),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
}


def _set(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        read, change = SETTINGS[name]
        if read() != value:
            change(value)


class Theirs:
    """Inside, code of the user's runs: whatever error it raises is told in one line, by its key and with its place.

    What it sets for the whole process, such as `torch.set_grad_enabled(False)` at the top of its module, holds for such
    code alone, in its later calls too; the run goes on with its own. What it draws is new at each call.
    """

    settings: ClassVar[dict[str, Any]] = {}  # what such code has set otherwise than the run

    def __init__(self, what: str) -> None:
        self.what = what
        self.ours = {name: read() for name, (read, _) in SETTINGS.items()}
        self.draws = own_draws(random.getrandbits(32))  # Python's generator: the run itself draws nothing from it

    def __enter__(self) -> None:
        self.draws.__enter__()
        _set(Theirs.settings)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises:
        ConfigError: the code raised an error that is none of ours, would have ended the process, or closed what the run
            speaks through.
        """
        theirs = {name: read() for name, (read, _) in SETTINGS.items()}
        Theirs.settings = {name: value for name, value in theirs.items() if value != self.ours[name]}
        _set(self.ours)
        self.draws.__exit__(None, None, None)
        if error is None and sys.stdout.closed:
            raise ConfigError(f"{self.what} closed sys.stdout, which the run writes to: it must leave that open")
        if not isinstance(error, Exception | SystemExit) or isinstance(error, UserError):
            return
        frames = [frame for frame in traceback.extract_tb(trace) if not _is_library(frame.filename)]
        where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        raise ConfigError(f"{self.what} raised {type(error).__name__}: {str(error)[:200]}{where}") from error


def _is_library(file: str) -> bool:
    """Whether code is neither the user's nor that of the function in this package that is asked for."""
    return file == __file__ or file.startswith("<frozen") or any(Path(file).is_relative_to(each) for each in LIBRARIES)


def numbers(answer: object, count: int, key: str) -> list[float]:
    """What a function returned, as one number for each of `count` replies: a sequence, an array or a tensor of numbers,
    where True counts as 1.

    Raises:
        ConfigError: it is something else, of another length, or holds what is no finite number of float32.
    """
    values: Any = answer.tolist() if isinstance(answer, (np.ndarray, Tensor)) else answer
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise ConfigError(f"{key} must return a list of {count} numbers, one a reply, got {type(answer).__name__}")
    if len(values) != count:
        raise ConfigError(f"{key} must give {count} replies a score each, got {len(values)}")
    found = []
    for number, each in enumerate(values, start=1):
        plain: Any = each.tolist() if isinstance(each, (np.generic, np.ndarray, Tensor)) else each
        if not isinstance(plain, (int, float)):
            raise ConfigError(f"{key} must give numbers, got {plain!r:.80} for reply {number} of {count}")
        if not abs(plain) <= LARGEST:  # nan is not, either
            raise ConfigError(f"{key} must give finite scores, got {plain!r:.80} for reply {number} of {count}")
        found.append(float(plain))
    return found


def asked_by(functions: Mapping[str, str | None]) -> Carried:
    """What functions ask of the prompts' rows. `functions`: key -> dotted path.

    Raises:
        ConfigError: there is no such function.
    """
    loaded = {f"{key}={path}": load_function(path, key) for key, path in functions.items() if path is not None}
    asked = {name: asked_columns(function) for name, function in loaded.items()}
    return Carried({name: each for name, each in asked.items() if each.required or each.optional or each.others})


def asked_columns(function: ScoreFunction) -> Asked:
    """The parameters behind the first two, which are the prompts and the replies."""
    try:
        parameters = list(signature(function).parameters.values())
    except ValueError:  # one that is not written in Python says nothing of them
        return Asked()
    placed = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    columns = [each for each in named if each not in placed[:2]]
    return Asked(
        required=tuple(each.name for each in columns if each.default is each.empty),
        optional=tuple(each.name for each in columns if each.default is not each.empty),
        others=any(each.kind is each.VAR_KEYWORD for each in parameters),
        taken=tuple(each.name for each in placed[:2]),
    )


def load_function(path: str, key: str) -> ScoreFunction:
    """The function at a dotted path.

    Raises:
        ConfigError: there is none, or its module cannot be imported; names the key.
    """
    if str(Path.cwd()) not in sys.path:  # a command does not look beside itself as `python -m` does
        sys.path.insert(0, str(Path.cwd()))
    module, _, name = path.rpartition(".")
    rule = f"{key} must be the dotted path of a function, got {path!r}"
    if not module:
        raise ConfigError(f"{rule}; of one in FILE.py it is FILE.{name}")
    with Theirs(f"{rule}; importing {module!r}"):
        function = vars(import_module(module)).get(name)
    if not callable(function):
        raise ConfigError(rule)
    return function

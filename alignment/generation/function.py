"""A Python function of the user's that scores replies: found at its dotted path, asked once for all, and checked."""

import sys
import traceback
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from sysconfig import get_path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.config.sections import ConfigError, UserError
from alignment.data.records import Message
from alignment.distributed.collectives import from_main, is_main
from alignment.generation.samples import Samples

ScoreFunction = Callable[[list[list[Message]], list[str]], list[float]]
LIBRARIES = [get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
LARGEST = torch.finfo(torch.float32).max


@dataclass(slots=True)
class FunctionScorer:
    """A Python function of (prompts, replies)."""

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
        told = from_main(self._asked(samples) if is_main() else [])
        if isinstance(told, UserError):
            raise told
        return told

    def _asked(self, samples: Samples) -> list[float] | UserError:
        texts = samples.texts()
        prompts = [deepcopy(prompt) for prompt in samples.repeated_prompts()]  # what it changes is its own
        try:
            with Theirs(f"{self.key} {self.path}".strip()):
                answer: object = self.function(prompts, texts)
            return numbers(answer, len(texts), self.key)
        except UserError as error:
            return error


class Theirs:
    """Inside, code of the user's runs: whatever error it raises is told in one line, by its key and with its place."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises:
        ConfigError: the code raised an error that is none of ours.
        """
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        theirs = [frame for frame in traceback.extract_tb(trace) if not _is_library(frame.filename)]
        where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
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


def load_function(path: str, key: str) -> ScoreFunction:
    """The function at a dotted path.

    Raises:
        ConfigError: there is none, or its module cannot be imported; names the key.
    """
    if str(Path.cwd()) not in sys.path:  # a command does not look beside itself as `python -m` does
        sys.path.insert(0, str(Path.cwd()))
    module, _, name = path.rpartition(".")
    rule = f"{key} must be the dotted path of a function, got {path!r}"
    with Theirs(f"{rule}; importing {module!r}"):
        function = vars(import_module(module)).get(name)
    if not callable(function):
        raise ConfigError(rule)
    return function

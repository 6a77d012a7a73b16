"""A checkpoint on its way to the disk: each rank's part in a thread of its own, which training need not wait for."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from alignment.distributed.collectives import gathered, is_main, rank
from alignment.runs.written import filled_beside, publish_folder
from alignment.training.manifest import File, Manifest, part_name, write_manifest, write_part

Result = TypeVar("Result")


class Writing:
    """This rank's part of the checkpoint of a step."""

    def __init__(self, step: int, state: dict[str, Any], beside: Path) -> None:
        """`beside`: the folder in which the checkpoint is filled."""
        self.step = step
        self._state, self._path = state, beside / part_name(rank())
        self._thread: threading.Thread | None = None
        self._file: File | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Write from here on, beside whatever this process does; the state must not change any more. A process that
        ends does not wait for it."""
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def result(self) -> File:
        """What has been written, when it has been; written now where it was not begun.

        Raises:
            OSError: it could not be; or what else has ended the thread.
        """
        if self._thread is None:
            self._write()
        else:
            self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._file is not None
        return self._file

    def _write(self) -> None:
        with ExitStack() as whatever_happens:
            whatever_happens.push(self._keep)
            self._file = write_part(self._state, self._path)

    def _keep(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        """For the main thread: one that ends by an error tells nobody."""
        self._error = error
        return True


def copied(value: Any) -> Any:
    """Tensors, numbers, strings, lists and dicts, the tensors copied into the machine's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(inner) for inner in value)
    return value


def publish(folder: Path, manifest: Manifest) -> None:
    """The manifest makes it a checkpoint, the name makes it the run's."""
    write_manifest(filled_beside(folder), manifest)
    publish_folder(folder)


def together(part: Callable[[], Result]) -> list[Result]:
    """What each rank's part gave. Where one fails, all do, so that no rank waits for one that cannot go on.

    Raises:
        OSError: that of the first rank that could not read or write.
    """
    failed: OSError | None = None
    result: Any = None
    try:
        result = part()
    except OSError as error:
        failed = error
    everybody = gathered((result, failed))
    for _, why in everybody:
        if why is not None:
            raise why
    return [result for result, _ in everybody]


def by_main(part: Callable[[], None]) -> None:
    """`together`, of a part that the main process alone has."""
    together(lambda: part() if is_main() else None)

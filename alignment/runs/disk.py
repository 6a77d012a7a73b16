"""What is said of a disk that takes no more of what a run writes."""

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from alignment.config.errors import UserError
from alignment.user_error import FULL, NOT_TAKEN

NUMBER = re.compile(r"\(os error (\d+)\)")


def not_written(path: Path | str, error: OSError) -> UserError:
    """The one line for it."""
    why = f"{error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"
    return UserError(f"{path} cannot be written: {why}; what was saved before is kept")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Around what writes `path`: the system says of which file only when it is opened, and safetensors never.

    Raises:
        OSError: a fault of the disk, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NOT_TAKEN and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:
        number = NUMBER.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


@contextmanager
def told_of_disk(folder: Path) -> Iterator[None]:
    """Inside, a disk that does not take what a run writes in its folder is told in one line, whoever meets it first.
    What names a file elsewhere, and what may have been met in reading, goes on as it is.

    Threads of libraries that meet it, as tensorboard's, say nothing beside that: they hand it on.

    Raises:
        UserError: names the file, where that is known.
    """
    former = threading.excepthook

    def meet(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in FULL):
            former(args)

    threading.excepthook = meet
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:
            raise not_written(f"{folder}, or what its run keeps elsewhere,", error) from error
        if error.errno not in NOT_TAKEN or not _is_within(error.filename, folder):
            raise
        raise not_written(error.filename, error) from error
    finally:
        threading.excepthook = former


def _is_within(name: object, folder: Path) -> bool:
    return isinstance(name, str | os.PathLike) and Path(name).absolute().is_relative_to(folder.absolute())

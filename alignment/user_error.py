"""The end of a command that the user got wrong: one line, exit code 2. Needs neither Hydra nor torch."""

import errno
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

from alignment.process import end

USER_ERROR = 2
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # which only writing meets
NOT_TAKEN = (*FULL, errno.EROFS, errno.EIO)  # what a disk answers that takes no more of what is written


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"alignment: {' '.join(message.split())}", file=sys.stderr)
    end(USER_ERROR)


def unwritten(error: OSError) -> str:
    """What is said of a standard output that is not taken."""
    return f"the standard output cannot be written ({error.strerror})"


def nearest(name: str, names: Iterable[str], within: str = "", least: float = 0.6) -> str:
    """` (did you mean 'loss.beta'?)`, or nothing where no name is near; `within` stands before what is found.

    Args:
        least: how alike they are, between 0 and 1 (difflib).
    """
    near = get_close_matches(name, list(names), n=1, cutoff=least)
    return f" (did you mean {within + near[0]!r}?)" if near else ""

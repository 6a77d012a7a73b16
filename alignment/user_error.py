"""The end of a command that the user got wrong: one line, exit code 2. Needs neither Hydra nor torch."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

from alignment.process import end

USER_ERROR = 2


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"alignment: {' '.join(message.split())}", file=sys.stderr)
    end(USER_ERROR)


def nearest(name: str, names: Iterable[str], within: str = "", least: float = 0.6) -> str:
    """` (did you mean 'loss.beta'?)`, or nothing where no name is near; `within` stands before what is found.

    Args:
        least: how alike they are, between 0 and 1 (difflib).
    """
    near = get_close_matches(name, list(names), n=1, cutoff=least)
    return f" (did you mean {within + near[0]!r}?)" if near else ""

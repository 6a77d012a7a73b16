"""Paths that lead to where the user may not look or write, and names that no file system takes."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from alignment.config.errors import UserError

OUT_OF_REACH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


@contextmanager
def within_reach() -> Iterator[None]:
    """Inside, a path that is out of reach is its user's mistake, wherever it is come upon first.

    Raises:
        UserError: names the path, and why.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OUT_OF_REACH or error.filename is None:
            raise
        raise UserError(f"{error.filename} is out of reach: {error.strerror}") from error

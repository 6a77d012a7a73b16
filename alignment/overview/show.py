"""The verb `status`: one run on a page, several in a table."""

import shlex
from pathlib import Path

from alignment.config.errors import UserError
from alignment.overview.page import page
from alignment.overview.status import read_status, status_of
from alignment.overview.table import Asked, table
from alignment.runs.settings import DEPTH, tree_of
from alignment.user_error import fail


def print_status(folder: Path, asked: Asked, *, every: bool) -> None:
    """`every`: all metrics, of a single run."""
    try:
        tree = tree_of(folder)
        runs, deeper = tree.runs, _deeper(tree.beyond)
        found = [read_status(folder)] if runs == [folder] else [status_of(run) for run in runs]
        if not runs:
            more = f"; {deeper}" if deeper else ""
            fail(f"RUN must hold a run, a sweep or a pipeline, got {str(folder)!r}{more}")
        is_one = runs == [folder]
        if is_one and (asked.metrics or asked.sort):
            raise UserError(
                f"--metric and --sort are for several runs, and {str(folder)!r} is one; --all shows all its metrics"
            )
        if every and not is_one:
            raise UserError(
                f"--all is for one run, as {str(runs[0])!r}; --metric NAME adds a column, got {str(folder)!r}"
            )
        lines = list(page(found[0], every=every) if is_one else table(folder, found, asked))
    except UserError as error:
        fail(f"status: {error}")
    for line in dict.fromkeys(status.trouble for status in found if status.trouble):
        print(f"Slurm cannot be asked, so this is from the files only: {line}")
    print("\n".join([*lines, *filter(None, [deeper])]))


def _deeper(beyond: list[Path]) -> str:
    """Where nobody has looked, and how to; nothing where that is nowhere."""
    if not beyond:
        return ""
    what = "a folder lies" if len(beyond) == 1 else f"{len(beyond)} folders lie"
    return f"{what} too deep to be looked into ({DEPTH} levels are): alignment status {shlex.quote(str(beyond[0]))}"

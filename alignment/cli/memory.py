"""What is said of a run that ran out of memory."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from alignment.config.errors import ConfigError
from alignment.config.run import RunConfig
from alignment.preempt import is_main
from alignment.runs.folder import RunFolder
from alignment.runs.lifecycle import as_begun
from alignment.terminal import say

LACKING = re.compile(
    r"out of memory|can('|no)t allocate memory|not enough memory|bad_alloc|_ALLOC_FAILED", re.IGNORECASE
)
"""As torch says it, of a GPU and of a CPU, and the system."""


@contextmanager
def told_of_memory(config: RunConfig) -> Iterator[None]:
    """Inside, an error for want of memory is followed by a line on what was planned and what was there; it goes on. Of
    a process that does not speak itself the line is a note to its error, which the launcher shows."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, MemoryError) or LACKING.search(str(error)):
            tell = say if is_main() else error.add_note
            tell(line_on(config))
        raise


def line_on(config: RunConfig) -> str:
    from alignment.plan.command import planned_most  # not above: they import torch
    from alignment.plan.hardware import measured

    folder = RunFolder(config.output_dir)
    expected, plan = "", f"alignment plan {folder.config if folder.config.exists() else 'RECIPE'}"
    with suppress(ConfigError, MemoryError):
        expected = planned_most(as_begun(folder, config))
    return f"out of memory: {expected}{measured(config) / 1e9:.1f} GB in use; `{plan}` says which settings take less"

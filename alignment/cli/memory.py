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

LACKING = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""As torch says it, of a GPU and of a CPU."""


@contextmanager
def told_of_memory(config: RunConfig) -> Iterator[None]:
    """Inside, an error for want of memory is followed by a line on what was planned and what was there; it goes on."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_main() and (isinstance(error, MemoryError) or LACKING.search(str(error))):
            say(line_on(config))
        raise


def line_on(config: RunConfig) -> str:
    from alignment.plan.command import planned_most  # not above: they import torch
    from alignment.plan.hardware import measured

    folder = RunFolder(config.output_dir)
    expected, plan = "", f"alignment plan {folder.config if folder.config.exists() else 'RECIPE'}"
    with suppress(ConfigError):
        expected = planned_most(as_begun(folder, config))
    return f"out of memory: {expected}{measured(config) / 1e9:.1f} GB in use; `{plan}` says which settings take less"

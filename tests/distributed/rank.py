"""One process of a test: `python rank.py SCRIPT ARGUMENTS ...` runs the script with everything imported as a run does,
the garbage collector asleep, which takes two thirds of the time, and leaves the group as a run does."""

import runpy
import sys
from importlib import import_module
from pathlib import Path

from alignment.process import importing

with importing():
    for name in ("tasks.evaluate", "tasks.online_dpo", "tasks.ppo", "tasks.rejection", "training.log", "cli.compose"):
        import_module(f"alignment.{name}")
    from alignment.distributed.collectives import leave

if __name__ == "__main__":
    sys.path[0] = str(Path(sys.argv[1]).parent)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    leave()

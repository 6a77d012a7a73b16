"""What the verbs share: a parser whose mistakes are one line, and the folder of a run."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from alignment.user_error import fail, nearest

HELP = ("-h", "--help")


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line. `--help` is shown by the command itself, before a verb reads its words."""

    def __init__(self, verb: str) -> None:
        super().__init__(prog=f"alignment {verb}", add_help=False, allow_abbrev=False)
        self.verb = verb

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; `alignment {self.verb} --help` shows what there is")


@contextmanager
def ending_with_reader() -> Iterator[None]:
    """Where all that a command does is to print: it ends without a word when nobody reads on, as in `| head`."""
    former = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
        sys.stdout.flush()
    finally:
        signal.signal(signal.SIGPIPE, former)


def existing_folder(verb: str, folder: str | None) -> Path:
    """The folder of a run, which is there."""
    if folder is None:
        fail(f"{verb} needs a run's folder: alignment {verb} RUN, its output_dir")
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            fail(f"{verb} needs a run's folder, got the file {folder!r}")
        near = nearest(Path(folder).name, (path.name for path in Path(folder).parent.glob("*")))
        fail(f"no such folder {folder!r}{near or '; `alignment status runs` lists those in runs/'}")
    return Path(folder)


def is_setting(word: str) -> bool:
    """Whether a word is key=value, or takes a key away, and no path."""
    return ("=" in word or word.startswith("~")) and not os.path.exists(word)

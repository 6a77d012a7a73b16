"""Where people watch: the one console, and the bar that long work shows. Of many processes only the first has them."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from alignment.user_error import NOT_TAKEN, unwritten

Item = TypeVar("Item")


class _Console(Console):
    """Quiet once the reader has closed the pipe, as in `| head`: what a run makes lies in its folder."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _check_buffer(self) -> None:
        """What rich does when its text is due, but that a disk which does not take it is as a reader who has gone: the
        run goes on, and says so once on the standard error."""
        try:
            super()._check_buffer()
        except OSError as error:
            if self.stderr or error.errno not in NOT_TAKEN:
                raise
            self.on_broken_pipe()
            with suppress(OSError):  # which may lie on the same disk
                print(f"alignment: {unwritten(error)}", file=sys.stderr)


console = _Console(quiet=os.environ.get("RANK", "0") != "0")


def progress(items: Iterable[Item], description: str) -> Iterator[Item]:
    """The items, with a bar that is gone when they are."""
    return iter(track(items, description=description, transient=True, console=console, disable=not console.is_terminal))


def working(description: str) -> AbstractContextManager[Any]:
    """Inside, a terminal shows that something is computed; bars of `progress` come beneath it."""
    return console.status(description) if console.is_terminal else nullcontext()


def has_bars() -> bool:
    """Whether lines can be drawn over, as bars do."""
    return console.is_terminal and not console.is_dumb_terminal


def duration(seconds: float) -> str:
    """h:mm:ss, days before it where there are any."""
    whole = round(max(seconds, 0.0))
    days, rest = divmod(whole, 86_400)
    return f"{f'{days} d ' if days else ''}{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"


def is_read() -> bool:
    """Whether somebody still reads what is said: False once the reader of a pipe has gone."""
    return not console.quiet


@contextmanager
def on_stderr() -> Iterator[None]:
    """Inside, what is said goes to the standard error, for the standard output is for what the command makes."""
    before, console.stderr = console.stderr, True
    try:
        yield
    finally:
        console.stderr = before


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is said."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def say(text: str) -> None:
    """One line, as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


say_once = cache(say)
"""The same, but for a line that was said already."""


def say_row(cells: Sequence[tuple[str, str, int]], text: str) -> None:
    """Cells of (text, rich's style, width) and a text behind them: wrapped in its own column on a terminal, one line
    elsewhere."""
    if not console.is_terminal:
        say(" ".join([*(f"{cell:<{width}}" for cell, _, width in cells), text]))
        return
    grid = Table.grid(padding=(0, 1, 0, 0))
    for _, style, width in cells:
        grid.add_column(style=style, width=width)
    grid.add_row(*(Text(cell) for cell, _, _ in cells), Text(text))
    console.print(grid, highlight=False)


def say_styled(*parts: tuple[str, str]) -> None:
    """One line of (text, rich's style), styled where a terminal is; nothing in a text is taken for markup."""
    console.print(Text.assemble(*parts), highlight=False, soft_wrap=True)


def say_marked(parts: Sequence[tuple[str, bool]]) -> None:
    """A text, of which some parts are marked: by style on a terminal, by brackets elsewhere."""
    if console.is_terminal:
        say_styled(*((text, "black on green" if is_marked else "dim") for text, is_marked in parts))
    else:
        say("".join(f"\u27e6{text}\u27e7" if is_marked else text for text, is_marked in parts))

"""Where people watch: the one console, and the bar that long work shows. Of many processes only the first has them."""

import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")

console = Console(quiet=os.environ.get("RANK", "0") != "0")


def progress(items: Sequence[Item], description: str) -> Iterator[Item]:
    """The items, with a bar that is gone when they are."""
    return iter(track(items, description=description, transient=True, console=console, disable=not console.is_terminal))


def say(text: str) -> None:
    """One line, as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)

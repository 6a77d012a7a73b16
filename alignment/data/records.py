"""What every data format becomes: a prompt and the replies to it."""

from dataclasses import dataclass

from alignment.config.parts import UserError

Message = dict[str, str]
"""One turn: `role`, one of system, user, assistant, and `content`."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row stands; numbers count from 1."""

    file: str
    line: int
    """Line of a file with one object per line; element of a JSON list; row of a table."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class DataError(UserError):
    """A row that cannot be used: `file:line: what is wrong`."""

    def __init__(self, source: Source, what: str) -> None:
        super().__init__(source, what)
        self.source = source
        self.what = what

    def __str__(self) -> str:
        return f"{self.source}: {self.what}"


class MarginError(DataError):
    """A margin that is asked for and missing or unknown: never skipped, for a file without ratings would vanish."""


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt that ends with a user's turn, and 0, 1 or 2 replies to it, none of them blank."""

    prompt: list[Message]
    """[]: there is none, and the one completion is a plain text."""
    completions: tuple[str, ...]
    """() a prompt alone, (completion,) a demonstration, (chosen, rejected) a pair."""
    margin: float | None
    """How much better the chosen reply is, >= 0. None: the pairs carry no margins, or this is no pair."""
    source: Source
    tags: tuple[str, ...] = ()
    """What the row says of its prompt in `tags`, such as safety; read where prompts are."""

"""What every data format becomes: a prompt and the replies to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignment.config.data import Template
from alignment.config.errors import UserError

Message = dict[str, Any]
"""One turn: `role` and `content`, a text, and whatever else a chat template reads, such as reasoning_content,
tool_calls, name or tool_call_id. A `weight` of 0 on an assistant's turn says that it is not learned from."""


class Cell(str):
    """A text of a table of texts, which writes numbers, truths and lists as texts too."""

    __slots__ = ()

    def number(self) -> "int | float | Cell":
        """The number that is written; the text itself where it is none."""
        try:
            return int(self) if self.strip().lstrip("+-").isdecimal() else float(self)
        except ValueError:
            return self


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row stands; numbers count from 1."""

    file: str
    line: int
    """Line of a file with one object per line; element of a JSON list; row of a table."""
    part: int = 0
    """Which of the rows that one place is the source of, as a tree of messages is; 0 where it is of one."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" ({self.part})" if self.part else "")


class DataError(UserError):
    """A row that cannot be used: `file:line: what is wrong`."""

    def __init__(self, source: Source, what: str) -> None:
        super().__init__(source, what)
        self.source = source
        self.what = what

    def __str__(self) -> str:
        return f"{self.source}: {self.what}"


class LayoutError(DataError):
    """What the rows' layout needs is not there: they may be of another one."""


class GradeError(DataError):
    """A margin or a score that is asked for and missing or unknown: never skipped, for a file without any would
    vanish."""


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt that ends with a user's or a tool's turn, and any number of replies to it."""

    prompt: list[Message]
    """[]: there is none, the one completion is a plain text, and `template` is none."""
    completions: tuple[list[Message], ...]
    """() a prompt alone, (completion,) a demonstration, (chosen, rejected) a pair. A reply is the assistant's turn, or
    several turns that begin and end with the assistant's: a demonstration of many, or a reply that calls tools."""
    margin: float | None
    """How much better the chosen reply is, >= 0. None: the pairs carry no margins, or this is no pair."""
    source: Source
    tags: tuple[str, ...] = ()
    """What the row says of its prompt in `tags`, such as safety; read where prompts are."""
    tools: tuple[dict[str, Any], ...] = ()
    """The schemas of the functions that may be called; the chat template writes them into the prompt."""
    template: Template = Template.chat
    finished: tuple[bool, ...] | None = None
    """Per completion: False where it was cut before its end, and has none. None: all have their end."""

    dropped: int = 0
    """Turns behind the last reply that the row has and the record leaves out."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """What else the row gives the chat template."""
    weight: float = 1.0
    """What the row counts in the mean of a loss."""

    labels: tuple[bool | float, ...] = ()
    """What is known of the one reply: whether it is desirable, or its score; or of each of its steps whether it is
    right. () for a method that learns from no labels."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Of a prompt, what its row has beside the dialogue, as far as a function that scores replies asks for it."""
    steps: tuple[int, ...] = ()
    """Where each step of the one reply ends, what separates it from the next one included: characters of its text. ()
    for a reply that is judged as a whole."""

    def unpaired(self) -> "list[Record]":
        """Each reply of a pair as one that is desirable or not; what has a label already, as it is."""
        if self.labels:
            return [self]
        return [
            replace(self, completions=(reply,), margin=None, labels=(is_chosen,))
            for reply, is_chosen in zip(self.completions, (True, False), strict=True)
        ]

    def has_end(self, number: int) -> bool:
        """Whether a completion is laid out with its end; a blank one is, for it has nothing else to end with."""
        is_finished = self.finished is None or self.finished[number]
        return is_finished or not self.completions[number][-1]["content"].strip()


def assistant(text: str) -> list[Message]:
    """The reply that is one turn."""
    return [{"role": "assistant", "content": text}]


def replied(record: Record, texts: Sequence[str], finished: Sequence[bool]) -> Record:
    """The same prompt with other replies, each one turn of the assistant: what `encode` makes of them in a tokenizer's
    template is token for token what training on that dialogue would give.

    Args:
        texts: n replies, as text without special tokens.
        finished: [n], False for a reply that was cut before its end: its tokens end with the text's own.
    """
    return replace(record, completions=tuple(assistant(text) for text in texts), margin=None, finished=tuple(finished))

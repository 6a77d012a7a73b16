"""Our fields by the file's columns: which names a row may have, and what a config may say of them."""

from collections.abc import Collection, Mapping
from enum import Enum

from alignment.config.errors import ConfigError, require
from alignment.config.margin import MarginConfig
from alignment.user_error import nearest


class ExampleKind(str, Enum):
    """What a task takes from a row."""

    prompts = "prompts"
    demonstrations = "demonstrations"
    pairs = "pairs"
    labeled = "labeled"
    """Single replies that are desirable or not."""
    scored = "scored"
    """Single replies with a score."""
    steps = "steps"
    """Single replies in steps, each right or wrong."""


TURNS = ("prompt", "completion", "chosen", "rejected", "messages", "conversations", "text")
ALPACA = ("instruction", "input", "output", "history")
BESIDE = ("system", "tools", "tags", "weight", "chat_template_kwargs")
GRADES = ("label", "score", "rating", "margin", "chosen_score", "rejected_score", "completions", "labels")
FIELDS = (*TURNS, *ALPACA, *BESIDE, *GRADES)
"""What a row may have, whatever its layout."""
NEEDED = {
    ExampleKind.prompts: ("prompt",),
    ExampleKind.demonstrations: ("prompt", "completion"),
    ExampleKind.pairs: ("prompt", "chosen", "rejected"),
    ExampleKind.labeled: ("prompt", "completion", "label"),
    ExampleKind.scored: ("prompt", "completion", "score"),
    ExampleKind.steps: ("prompt", "completions", "labels"),
}
"""What a native row must have for a task: what it is asked for where its columns have other names."""
TAKEN = {
    ExampleKind.prompts: (),
    ExampleKind.demonstrations: ("chosen", "messages", "conversations", "text"),
    ExampleKind.pairs: ("rating", "margin", "chosen_score", "rejected_score"),
    ExampleKind.labeled: ("chosen", "rejected", "messages", "conversations"),
    ExampleKind.scored: ("messages", "conversations"),
    ExampleKind.steps: (),
}
"""What it may have in place of these, or beside them, of all that is no task's own."""


def taken_by(kind: ExampleKind) -> tuple[str, ...]:
    """The fields that a task of such rows reads, those first that it needs."""
    return (
        *NEEDED[kind],
        *TAKEN[kind],
        *(name for name in BESIDE if (name == "tags") is (kind is ExampleKind.prompts)),
    )


def require_columns(columns: Mapping[str, str], margin: MarginConfig, key: str) -> None:
    """Raise `ConfigError` where a column has no name, or two keys say where the same grade is."""
    require(all(columns.values()), f"{key} must name a column of the file for each field", dict(columns))
    given = {"rating": margin.column, "margin": margin.column}
    given |= {"chosen_score": margin.chosen_column, "rejected_score": margin.rejected_column}
    for field, column in given.items():
        if field in columns and column not in (None, field):
            raise ConfigError(
                f"{key}.{field} and data.margin's column must not both say where it is, "
                f"got {columns[field]!r} and {column!r}"
            )


def require_known(columns: Mapping[str, str], more: Collection[str], key: str, kind: ExampleKind) -> None:
    """Raise `ConfigError` where a column is named for a field that nothing reads. `more`: what the config has named
    itself, such as the columns of a score. `kind`: whose fields are told then; those of other tasks do no harm."""
    unknown = next((field for field in columns if field not in (*FIELDS, *more)), None)
    if unknown is not None:
        own = taken_by(kind)
        hint = nearest(unknown, own) or nearest(unknown, FIELDS) or f"; of {kind.value} are read {', '.join(own)}"
        raise ConfigError(f"{key}.{unknown}: no task of rows reads such a field{hint}")

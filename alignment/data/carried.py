"""Columns of prompts that functions ask for, to check a reply against: which they are, and that the rows have them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignment.config.errors import ConfigError
from alignment.user_error import nearest


@dataclass(frozen=True, slots=True)
class Asked:
    """What one function takes beside prompts and replies."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # with a default of its own, for rows that have no such column
    others: bool = False  # whether it takes all other columns too
    taken: tuple[str, ...] = ()  # what it calls the prompts and the replies

    def names(self, there: Collection[str]) -> list[str]:
        """Which of the columns that there are it is given."""
        named = (*self.required, *self.optional)
        return [name for name in there if name in named or (self.others and name not in self.taken)]


@dataclass(frozen=True, slots=True)
class Carried:
    """What is kept of each prompt's row, by the functions that ask for it; nothing where none does."""

    functions: Mapping[str, Asked]
    """By what their user knows them by, "reward.function=rules.correct"."""

    def names(self, rows: Iterable[Mapping[str, Any]], key: str) -> list[str]:
        """The columns of these rows that are asked for.

        Args:
            key: of the rows in the config.

        Raises:
            ConfigError: a function asks for one that no row has; names the function and the columns.
        """
        if not self.functions:
            return []
        there = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
        for function, asked in self.functions.items():
            lacking = next((name for name in asked.required if name not in there), None)
            if lacking is not None:
                has = ", ".join(there) + nearest(lacking, there)
                rule = f"{function} asks for the column {lacking!r}, which no row of {key} has; they have {has}"
                raise ConfigError(f"{rule} (data.columns.{lacking}=COLUMN names it)")
        return [name for name in there if any(asked.names([name]) for asked in self.functions.values())]


NOTHING = Carried({})

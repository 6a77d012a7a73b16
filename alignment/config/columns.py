"""Our fields by the file's columns: which names a row may have, and what a config may say of them."""

from collections.abc import Collection, Mapping

from alignment.config.errors import ConfigError, require
from alignment.config.margin import MarginConfig
from alignment.user_error import nearest

TURNS = ("prompt", "completion", "chosen", "rejected", "messages", "conversations", "text")
ALPACA = ("instruction", "input", "output", "history")
BESIDE = ("system", "tools", "tags", "weight", "chat_template_kwargs")
GRADES = ("label", "score", "rating", "margin", "chosen_score", "rejected_score", "completions", "labels")
FIELDS = (*TURNS, *ALPACA, *BESIDE, *GRADES)
"""What a row may have, whatever its layout."""


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


def require_known(columns: Mapping[str, str], more: Collection[str], key: str) -> None:
    """Raise `ConfigError` where a column is named for a field that nothing reads. `more`: what the config has named
    itself, such as the columns of a score."""
    unknown = next((field for field in columns if field not in (*FIELDS, *more)), None)
    if unknown is not None:
        hint = nearest(unknown, FIELDS) or f"; a row has {', '.join(FIELDS)}"
        raise ConfigError(f"{key}.{unknown}: no task of rows reads such a field{hint}")

"""Every key has a word, and every value of a choice: what --help and the pages of keys show of it."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

from alignment.cli.help import field_docs
from alignment.config.tasks import TASKS


def parts(config: type[Any]) -> Iterator[type[Any]]:
    """A config's dataclass and those of its keys, within mappings and lists too."""
    yield config
    for hint in get_type_hints(config).values():
        for kind in (hint, *get_args(hint)):
            if isinstance(kind, type) and is_dataclass(kind):
                yield from parts(kind)


def test_every_key_of_every_task_says_what_it_is() -> None:
    found = {part for name, root in TASKS.items() if "." not in name for part in parts(root)}
    assert len(found) > 30
    silent = [
        f"{part.__name__}.{field.name}"
        for part in found
        for field in fields(part)
        if not field_docs(part).get(field.name) and not is_dataclass(get_type_hints(part)[field.name])
    ]
    assert sorted(silent) == []


def test_every_value_of_a_choice_says_what_it_does() -> None:
    choices = {
        kind
        for name, root in TASKS.items()
        if "." not in name
        for part in parts(root)
        for hint in get_type_hints(part).values()
        for kind in (hint, *get_args(hint))
        if isinstance(kind, type) and issubclass(kind, Enum)
    }
    assert len(choices) > 20
    silent = [f"{kind.__name__}.{each.name}" for kind in choices for each in kind if each.name not in field_docs(kind)]
    assert sorted(silent) == []

"""What Hydra, OmegaConf and the YAML reader say, as one line in the user's terms."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import get_args, get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from alignment.cli.entries import fields_of_entry
from alignment.cli.overrides import quoted
from alignment.cli.reach import within_reach
from alignment.cli.recipes import recipes, shipped
from alignment.cli.spellings import VALUES, groups_of, meant
from alignment.config.errors import ConfigError, UserError
from alignment.config.renamed import key_now, value_now
from alignment.user_error import nearest

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
"""What composing and resolving raise for a user's mistake; ConfigError is a ValueError."""

SEVERAL = {  # what a list is meant for, and how it is spelled
    "data.train": "several sources are data.train.mix={a: {path: ..., weight: 2}, b: {path: ..., weight: 1}}",
    "data.eval": "several sets are data.eval.sets={a: {path: ...}, b: {path: ...}}",
}
OF_PRESETS = {"model": "model.path", "data": "data.train.path"}  # what a preset's group is taken for, and its key
NO_PRESET = "a group must be given the name of a preset"
ALIKE = 0.8  # of a value and what it may stand for: kto_pair is not exo_pair
KEY = re.compile(r"[+~\w][\w.@:/-]*=", re.ASCII)
MERGED = re.compile(r"^Error merging override \+{0,2}(?P<key>[\w.]+)=(?P<value>.*)")  # as Hydra says it
TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def explain(error: BaseException) -> str:
    """What went wrong while a config was composed, in one line."""
    if isinstance(error, UserError):  # which is told already, whatever it came of
        return _first_line(str(error))
    for cause in _chain(error):
        if isinstance(cause, MissingConfigException):
            return _missing_file(cause)
        if isinstance(cause, OverrideParseException):
            return _unreadable(cause)
        if isinstance(cause, MarkedYAMLError) and cause.problem_mark is not None:
            mark = cause.problem_mark
            return f"{mark.name}:{mark.line + 1}: not YAML: {cause.problem}"
        if isinstance(cause, OmegaConfBaseException):
            return _bad_key_or_value(cause, _merged(error))
    message = _first_line(str(error))
    if message.startswith("Ambiguous value"):
        word = message.partition(" argument ")[2]
        ways = f"a list is written key=[a,b], a text {quoted(word[1:-1])}"
        return f"{word} is a sweep: it needs -m ({ways})"
    if message.startswith("Could not delete"):
        return f"no such key to remove: {message.partition('. ')[2]}"
    if message.startswith("primary config"):
        return "a recipe must hold keys and values, got a list"
    if message.startswith("invalid literal for int() with base 10: "):
        return f"a list's entries have numbers, as in log.trackers.0, got {message.rpartition(': ')[2]}"
    if message.startswith("Config group override"):
        return f"{NO_PRESET}, got {message.rpartition('Got ')[2]}"
    return message


def error_line(error: BaseException, overrides: list[str]) -> str:
    """`explain`, and what became of a `~` where a file is missing."""
    line = explain(error)
    if line.startswith(NO_PRESET):
        words = [word.lstrip("+").partition("=") for word in overrides]
        group = next((key for key, _, _ in words if (shipped("conf") / key).is_dir()), None)
        line = line if group is None else f"{group} {line.removeprefix('a group ')}"
    has_home = any(sign in word for word in overrides for sign in ("=~", '="~'))
    if has_home and "no such file or folder" in line:
        line += " (a ~ that begins a path is the home folder, also in quotes; a name that begins with one is ./~...)"
    return line


@contextmanager
def told_as_one_line(overrides: list[str]) -> Iterator[None]:
    """Inside, whatever composing raises for a user's mistake is a ConfigError of one line."""
    try:
        with within_reach():
            yield
    except COMPOSE_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise ConfigError(error_line(error, overrides)) from error


def told_by(line: str, typed: Mapping[str, str]) -> str:
    """A mistake in a key that a verb sets, by what its user has typed for it: key -> flag, or word of its usage."""
    for key, word in typed.items():
        if line.startswith((f"{key} ", f"{key}:")):
            return word + line.removeprefix(key)
    return line


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _unreadable(error: OverrideParseException) -> str:
    """A word that is no key=value, or one whose value has signs of the grammar."""
    word = error.override
    begins = f"cannot read the override {word!r}: "
    if os.path.exists(word) and word:
        return f"{begins}it must be key=value, as data.train.path={word}"
    if "=" not in word or not KEY.match(word):
        return f"{begins}it must be key=value, without blanks or dashes before it and about the ="
    return f"{begins}{_first_line(error.message)}; a text with such signs is quoted, {quoted(word)}"


def _missing_file(error: MissingConfigException) -> str:
    """A preset of a group, or a whole group, that is not there."""
    wanted = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, choice = wanted.rpartition("/")
    if not group:
        return f"no recipe {wanted!r}{nearest(wanted, recipes([shipped('recipes')]))}"
    if not error.options:
        return f"no group {group!r} of presets, which the recipe's defaults name"
    options = list(error.options)
    kind, _, rest = wanted.partition("/")
    if kind in OF_PRESETS and not _value_hint(rest, options):
        way = f"; a folder, a file or a name on the hub is {OF_PRESETS[kind]}={rest}"
        return f"{kind} must be one of the presets {', '.join(options)}, got {rest!r}{way}"
    return f"{group} must be one of {', '.join(options)}, got {choice!r}{_value_hint(choice, options)}"


def _value_hint(value: str, options: list[str]) -> str:
    if (now := value_now(value, options)) is not None:
        return f" (it is {now} now)"
    return nearest(VALUES[value] if VALUES.get(value) in options else value, options, least=ALIKE)


def _merged(error: BaseException) -> tuple[str, str | None]:
    """(key, value) of the override that Hydra could not merge; ("", None) where it was something else."""
    found = MERGED.search(str(error))
    return ("", None) if found is None else (found["key"], found["value"])


def _bad_key_or_value(error: OmegaConfBaseException, merged: tuple[str, str | None]) -> str:
    key, given = error.full_key or str(error.key), error.value
    if "." not in key and f".{key}." in f"{merged[0]}.":  # of a new entry, which stands alone as yet
        key = merged[0][: f"{merged[0]}.".index(f".{key}.") + len(key) + 1]
        given = merged[1] if key == merged[0] else given
    message = _first_line(error.msg or str(error))
    names = [field.name for field in fields(error.object_type)] if is_dataclass(error.object_type) else []
    if "not in" in message:
        if (now := key_now(key, names)) is not None:
            return f"no such key {key!r}: it is {now} now"
        root = OmegaConf.get_type(error.parent_node._get_root()) if isinstance(error.parent_node, Container) else None
        hint = meant(key, root, names) if is_dataclass(root) else nearest(key.rpartition(".")[2], names)
        if not names and not hint and "." in key:
            hint = f"; {key.rpartition('.')[0]} has no keys in this task"
        return f"no such key {key!r}{hint}" + (f"; valid here: {', '.join(names)}" if names and not hint else "")
    if "does not support deletion" in message:
        return f"{key} can be set, not removed"
    if "is not Optional" in message:
        return f"{key} must have a value, got null"
    if options := re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", message):
        value, names = options[1], options[2].split(", ")
        return f"{key} must be one of {', '.join(names)}, got {value!r}{_value_hint(value, names)}"
    if of_enum := re.search(r"Value (.*) \(\w+\) is not a valid input for <enum", message):
        hint = get_type_hints(error.object_type)[key.rpartition(".")[2]]
        kind = next(each for each in (hint, *get_args(hint)) if isinstance(each, type) and issubclass(each, Enum))
        return f"{key} must be one of {', '.join(kind.__members__)}, got {of_enum[1]}"
    if typed := re.search(r"Value '(.*)' of type '.*' could not be converted to (\w+)", message):
        return f"{key} must be {TYPES.get(typed[2], typed[2])}, got {typed[1]!r}"
    if "is not a valid bool" in message:
        return f"{key} must be {TYPES['Boolean']}, got {error.value!r}"
    if "is not a ListConfig" in message:
        way = f"; one alone is written {key}=[{error.value}]" if error.value not in (None, "") else ""
        return f"{key} must be a list, got {error.value!r}{way}"
    if message.startswith("Invalid type assigned: dict"):  # OmegaConf makes no new entry of a typed mapping by its keys
        return f"{key} is new here and must be given whole, in braces: {key}={{...}}"
    if message.startswith("Cannot merge DictConfig with ListConfig"):
        way = next((f"; {spelled}" for start, spelled in SEVERAL.items() if key.startswith(start)), "")
        return f"{key} must hold keys and values, {{name: value}}, got a list{way}"
    if assigned := re.match(r"Cannot assign (\w+) to Dict", message):
        return f"{key} must hold keys and values, {{name: value}}, got {error.value!r} ({assigned[1]})"
    if merged_so := re.match(r"Merge error: (\w+) is not a subclass of (\w+)\. value: (.*)", message):
        return _of_a_file(error.object_type, *merged_so.groups())
    if "is not a subclass of" in message:
        group = get_type_hints(error.object_type).get(key.rpartition(".")[2]) if names else None
        inner = [field.name for field in fields(group)] if is_dataclass(group) else fields_of_entry(key)
        way = f"; did you mean {key}.path={given}?" if "path" in inner and isinstance(given, str) else ""
        way = way or (f"; they are {', '.join(inner)}" if inner else "")
        return f"{key} holds keys of its own, got {given!r}{way}"
    return f"{key}: {message}"


def _of_a_file(root: type | None, kind: str, name: str, value: str) -> str:
    """What a recipe's file gives a group that holds keys, of which OmegaConf names the class alone."""
    groups = {key: each for key, each in groups_of(root) if each.__name__ == name} if is_dataclass(root) else {}
    keys = " or ".join(groups) or name
    if kind == "list":
        ways = [spelled for start, spelled in SEVERAL.items() if start in groups]
        return f"{keys} must hold keys and values, got a list{'; ' * bool(ways)}{'; '.join(ways)}"
    inner = [field.name for each in [*groups.values()][:1] for field in fields(each)]
    is_path = "path" in inner and kind == "str" and len(groups) == 1
    return f"{keys} holds keys of its own, got {value}; " + (
        f"did you mean {keys}.path={value}?" if is_path else f"they are {', '.join(inner)}"
    )


def _first_line(text: str) -> str:
    return [*text.strip().splitlines(), "unknown error"][0]

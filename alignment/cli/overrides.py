"""`key=value` as people type it, in Hydra's grammar of overrides: a text that the grammar has no signs for is quoted.

The grammar takes letters of English, digits and some signs without quotes. A path with other letters, an apostrophe, an
equals sign or parentheses is as plain to whoever types it.
"""

import json
import os
import re
import shlex
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from alignment.cli.texts import holds_texts

PLAIN = re.compile(r"[A-Za-z_/@][\w./@-]*", re.ASCII)  # a string that the grammar takes without quotes,
RESERVED = ("null", "true", "false", "inf", "nan")  # unless it is one of its words
SIMPLE = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag|extend_list|\w*str|int|float|bool)\(.*\)")
TIGHT = re.compile(r"([{,]\s*[\w.@-]+):(?=[^\s/\\])")  # {a:b}, which YAML would read as one word


def readable(word: str, *, is_sweep: bool) -> str:
    """The override, its value quoted where the grammar cannot read it and it is plainly a text, or texts in a list, a
    mapping or (`is_sweep`) a sweep; or where the key holds texts, and it would be taken for a number or a yes."""
    key, equals, value = word.partition("=")
    if value != value.strip() and os.path.exists(value):  # the grammar leaves out the blanks around a text
        return f"{key}={written(value)}"
    parsed = _parsed(word)
    if parsed is not None and not (parsed.is_sweep_override() and os.path.exists(value)):
        return _with_texts(word, parsed) if holds_texts(key.lstrip("+")) else word
    if not equals or _parsed(f"{key}=x") is None or SIMPLE.fullmatch(value):
        return word
    if os.path.exists(value) or value[:1] not in ("[", "{"):
        is_one = not is_sweep or os.path.exists(value)
        pieces = [value] if is_one else value.split(",")
        return f"{key}={','.join(_as_it_is(key, piece) if _is_text(piece) else written(piece) for piece in pieces)}"
    return _rewritten(word)


def is_sweep_of_values(word: str) -> bool:
    """Whether the override has several values; one that cannot be read, which is told elsewhere, counts as such."""
    parsed = _parsed(word)
    return parsed is None or parsed.is_sweep_override()


def _rewritten(word: str) -> str:
    """A list or a mapping, in the grammar's own words; in one of texts everything is a text."""
    key, _, value = word.partition("=")
    loader = yaml.BaseLoader if holds_texts(key.lstrip("+")) else yaml.SafeLoader
    try:
        inside = yaml.load(TIGHT.sub(r"\1: ", value) if value.startswith("{") else value, Loader=loader)
    except yaml.YAMLError:
        return word
    return f"{key}={written(inside)}"


def _with_texts(word: str, parsed: Override) -> str:
    """The override of a key that holds texts, so quoted that none is read as a number or a yes: 1e3, 007 and 1.50 would
    be written otherwise then."""
    key, _, value = word.partition("=")
    if parsed.is_sweep_override():
        pieces = [_as_it_is(key, piece) for piece in value.split(",")]
        return word if SIMPLE.fullmatch(value) else f"{key}={','.join(pieces)}"
    inside = parsed.value()
    if not isinstance(inside, dict | list):
        return f"{key}={_as_it_is(key, value)}"
    values = inside.values() if isinstance(inside, dict) else inside
    return _rewritten(word) if any(isinstance(each, int | float) for each in values) else word


def _as_it_is(key: str, value: str) -> str:
    """A value as it is typed; where the key holds texts, one that would be taken for a number or a yes is quoted."""
    parsed = _parsed(f"key={value}") if holds_texts(key.lstrip("+")) else None
    return written(value.strip()) if parsed is not None and isinstance(parsed.value(), int | float) else value


def quoted(word: str) -> str:
    """The override with its value as one text, as it is typed into a shell."""
    key, _, value = word.partition("=")
    return shlex.quote(f"{key}={written(value)}")


def written(value: Any) -> str:
    """A value in Hydra's override grammar, whose mappings have bare keys."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if not isinstance(value, str):
        return str(value) if isinstance(value, float) else json.dumps(value)
    if PLAIN.fullmatch(value) and value.lower() not in RESERVED:
        return value
    quotable = re.sub(r'(\\*)"', r'\1\1\\"', value)
    return '"' + re.sub(r"(\\+)\Z", r"\1\1", quotable) + '"'


def _is_text(value: str) -> bool:
    """Whether the grammar reads it as it is."""
    parsed = _parsed(f"key={value}")
    return parsed is not None and not parsed.is_sweep_override()


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None

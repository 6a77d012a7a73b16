"""`key=value` as people type it, in Hydra's grammar of overrides: a text that the grammar has no signs for is quoted.

The grammar takes letters of English, digits and some signs without quotes. A path with other letters, an apostrophe, an
equals sign or parentheses is as plain to whoever types it.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

PLAIN = re.compile(r"[A-Za-z_/@][\w./@-]*", re.ASCII)  # a string that the grammar takes without quotes,
RESERVED = ("null", "true", "false", "inf", "nan")  # unless it is one of its words
SIMPLE = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag|extend_list|\w*str|int|float|bool)\(.*\)")
TIGHT = re.compile(r"([{,]\s*[\w.@-]+):(?=[^\s/\\])")  # {a:b}, which YAML would read as one word


def readable(word: str, *, is_sweep: bool) -> str:
    """The override, its value quoted where the grammar cannot read it and it is plainly a text, or texts in a list, a
    mapping or (`is_sweep`) a sweep."""
    key, equals, value = word.partition("=")
    parsed = _parsed(word)
    if parsed is not None and not (parsed.is_sweep_override() and Path(value).exists()):
        return word
    if not equals or _parsed(f"{key}=x") is None or SIMPLE.fullmatch(value):
        return word
    if Path(value).exists() or value[:1] not in ("[", "{"):
        is_one = not is_sweep or Path(value).exists()
        pieces = [value] if is_one else value.split(",")
        return f"{key}={','.join(piece if _is_text(piece) else written(piece) for piece in pieces)}"
    try:
        inside = yaml.safe_load(TIGHT.sub(r"\1: ", value) if value.startswith("{") else value)
    except yaml.YAMLError:
        return word
    return f"{key}={written(inside)}"


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

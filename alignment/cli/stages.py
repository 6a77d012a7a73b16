"""Overrides of a pipeline's stages, by name: `stages.dpo_1.set.train.max_steps=3`.

Hydra knows a list's entries by their numbers, and reads every dot of a key as one level more; a stage's `set` has the
keys of its recipe as they are written on the command line, with their dots.
"""

import re

from hydra import compose as hydra_compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import OmegaConf

from alignment.cli.overrides import written
from alignment.config.errors import ConfigError
from alignment.user_error import nearest

OF_STAGE = re.compile(r"(?P<plus>\+{0,2})stages\.(?P<stage>[^.=]+)(?P<rest>[.\w]*)(?P<value>=.*)?", re.DOTALL)
SET = ".set."


def by_name(recipe: str, overrides: list[str]) -> list[str]:
    """The overrides, those of stages as Hydra takes them.

    Raises:
        ConfigError: the pipeline has no stage of that name.
    """
    if not any(OF_STAGE.fullmatch(word) for word in overrides):
        return overrides
    stages = OmegaConf.select(hydra_compose(recipe, []), "stages")
    if not OmegaConf.is_list(stages):
        return overrides  # which Hydra refuses: there is no such key
    names = [str(stage.get("name")) for stage in stages]
    return [_numbered(word, names) for word in overrides]


def _numbered(word: str, names: list[str]) -> str:
    found = OF_STAGE.fullmatch(word)
    if found is None:
        return word
    stage, rest, value = found["stage"], found["rest"], found["value"]
    if stage not in names and not (stage.isdecimal() and int(stage) < len(names)):
        raise ConfigError(f"stages must be one of {', '.join(names)}, got {stage!r}{nearest(stage, names)}")
    number = names.index(stage) if stage in names else int(stage)
    if value is None or not rest.startswith(SET):
        return f"{found['plus']}stages.{number}{rest}{value or ''}"
    key = rest.removeprefix(SET)
    parsed = OverridesParser.create().parse_override(f"key{value}")
    return f"+stages.{number}.set=" + ",".join(f"{{{key}: {each}}}" for each in _values(parsed, value[1:]))


def _values(parsed: Override, typed: str) -> list[str]:
    """One, or those of a sweep."""
    if not parsed.is_sweep_override():
        return [_as_text(parsed.value(), typed)]
    return list(parsed.sweep_string_iterator())


def _as_text(value: object, typed: str) -> str:
    return written(value.text) if isinstance(value, QuotedString) else typed or '""'

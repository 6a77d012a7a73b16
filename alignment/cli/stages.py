"""Overrides of a pipeline's stages, by name: `stages.dpo_1.set.train.max_steps=3`.

Hydra knows a list's entries by their numbers, and reads every dot of a key as one level more; a stage's `set` has the
keys of its recipe as they are written on the command line, with their dots.
"""

import logging
import os
import re
from pathlib import Path

from hydra import compose as hydra_compose
from hydra._internal.core_plugins import basic_launcher
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import OmegaConf

from alignment.cli.overrides import written
from alignment.cli.recipes import is_path
from alignment.cli.stage_keys import require_key_of_stage
from alignment.config.errors import ConfigError
from alignment.config.tasks import StageConfig
from alignment.user_error import nearest

OF_STAGE = re.compile(r"(?P<plus>\+{0,2})stages\.(?P<stage>[^.=]+)(?P<rest>[.\w]*)(?P<value>=.*)?", re.DOTALL)
SET = ".set."
WRITTEN = re.compile(r"\+stages\.(?P<stage>\d+)\.set=\{(?P<key>[\w.]+): ?(?P<value>.*?)\}(?= \S+=|$)", re.MULTILINE)


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


def with_files(stages: list[StageConfig], folders: list[Path]) -> None:
    """The recipes of stages that are paths: those of files, found beside the pipeline's own or where the command is
    given. folders: the user's, the first is that of the pipeline's file.

    Raises:
        ConfigError: there is no such file; names the stage.
    """
    for stage in stages:
        if is_path(stage.recipe):
            tried = [folder / stage.recipe for folder in folders] + [Path(stage.recipe).expanduser()]
            file = next((each for each in tried if each.is_file()), None)
            if file is None:
                places = " and ".join(sorted({str(each.parent) for each in tried}))
                raise ConfigError(f"stage {stage.name}: no recipe file {stage.recipe!r}, looked for in {places}")
            stage.recipe = os.path.relpath(file) if file.resolve().is_relative_to(Path.cwd()) else str(file)


def speak_as_typed(names: list[str]) -> None:
    """From here on Hydra's line on a job of a sweep has the stages' keys as `by_name` found them, by these names."""

    def named(found: re.Match[str]) -> str:
        return f"stages.{names[int(found['stage'])]}{SET}{found['key']}={found['value']}"

    def as_typed(record: logging.LogRecord) -> bool:
        record.msg = WRITTEN.sub(named, str(record.msg))
        return True

    logging.getLogger(basic_launcher.__name__).addFilter(as_typed)


def _numbered(word: str, names: list[str]) -> str:
    found = OF_STAGE.fullmatch(word)
    if found is None:
        return word
    stage, rest, value = found["stage"], found["rest"], found["value"]
    if stage not in names and not (stage.isdecimal() and int(stage) < len(names)):
        raise ConfigError(f"stages must be one of {', '.join(names)}, got {stage!r}{nearest(stage, names)}")
    number = names.index(stage) if stage in names else int(stage)
    require_key_of_stage(names[number], rest, value or "")
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

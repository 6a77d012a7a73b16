"""The verb `check`: the verdicts on one run, line by line; the exit code says whether one of them failed."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from alignment.cli.compose import compose, composing
from alignment.cli.errors import fail
from alignment.cli.explain import COMPOSE_ERRORS, explain
from alignment.cli.run import checked
from alignment.config.errors import ConfigError, UserError
from alignment.config.inputs import input_paths
from alignment.config.run import RunConfig
from alignment.config.tasks import PipelineConfig
from alignment.config.vocabulary import Grade
from alignment.process import importing
from alignment.terminal import say

UNSOUND = 1


def check_recipe(recipe: str, overrides: list[str], own: list[Path]) -> None:
    """Exit code 1 where a verdict is FAIL, 2 for a user's mistake; a warning changes nothing.

    `own`: the user's folders of recipes and presets.
    """
    begun = time.monotonic()
    with composing(own):
        try:
            configs, is_sweep = checked(recipe, overrides, sweep=False)
            if is_sweep:
                raise ConfigError("check takes one run, got a sweep")
        except COMPOSE_ERRORS as error:
            fail(f"{recipe}: {explain(error)}")
        try:
            grades = Counter(grade for config in _runs(configs[0]) for grade in _grades(config))
        except UserError as error:
            fail(f"{recipe}: {error}")
    counts = ", ".join(f"{grades[grade]} {grade.value}" for grade in Grade)
    say(f"{counts}; {time.monotonic() - begun:.0f} s, nothing was written")
    sys.exit(UNSOUND if grades[Grade.fail] else 0)


def _runs(config: RunConfig) -> Iterator[RunConfig]:
    """The run, or of a pipeline the stages whose inputs exist; the others are named."""
    if not isinstance(config, PipelineConfig):
        yield config
        return
    from alignment.tasks.pipeline import composed_stages

    for stage, stage_config in composed_stages(config, compose):
        lacking = [f"{key}={path}" for key, path in input_paths(stage_config) if not Path(path).exists()]
        say(f"\n{stage.name} ({stage.recipe})" + (f": not checked, there is no {lacking[0]} yet" if lacking else ""))
        if not lacking:
            yield stage_config


def _grades(config: RunConfig) -> Iterator[Grade]:
    with importing():
        from alignment.check.run import check

    for verdict in check(config):
        verdict.print()
        yield verdict.grade

"""The verb `check`: the verdicts on one run, line by line; the exit code says whether one of them failed."""

import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from alignment.check.verdict import Grade
from alignment.cli.compose import compose, composing
from alignment.cli.config_errors import COMPOSE_ERRORS, error_line
from alignment.cli.run import checked, say_advice
from alignment.config.errors import ConfigError, UserError
from alignment.config.inputs import input_places
from alignment.config.run import RunConfig
from alignment.config.tasks import PipelineConfig
from alignment.preempt import EXIT_CODE, Preempted
from alignment.process import end, importing, is_ours
from alignment.terminal import is_read, say, working
from alignment.user_error import USER_ERROR, fail

UNSOUND = 1


def check_recipe(recipe: str, overrides: list[str], own: list[Path]) -> None:
    """Exit code 1 where a verdict is FAIL, 2 for a user's mistake; a warning changes nothing.

    `own`: the user's folders of recipes and presets.

    Raises:
        BrokenPipeError: the reader has closed the pipe, so that there is no more to do.
    """
    begun = time.monotonic()
    with composing(own, recipe):
        try:
            configs, is_sweep = checked(recipe, overrides, sweep=False)
            if is_sweep:
                raise ConfigError("check takes one run, got a sweep")
            if not is_ours():
                say_advice(recipe, configs, overrides)
        except COMPOSE_ERRORS as error:
            fail(f"{recipe}: {error_line(error, overrides)}")
        if is_ours():
            _take_part(configs[0])
            return
        try:
            grades = Counter(grade for config in _runs(configs[0]) for grade in _grades(config))
        except UserError as error:
            fail(f"{recipe}: {error}")
    counts = ", ".join(f"{grades[grade]} {grade.value}" for grade in Grade)
    say(f"\n{counts}; {time.monotonic() - begun:.0f} s, nothing was written")
    if not grades[Grade.fail] and not own:
        how = "to run it as it is, with its WARN lines:" if grades[Grade.warn] else "the run can start:"
        say(f"{how} {shlex.join(['alignment', 'run', recipe, *overrides])}")
    sys.exit(UNSOUND if grades[Grade.fail] else 0)


def _runs(config: RunConfig) -> Iterator[RunConfig]:
    """The run, or of a pipeline the stages whose inputs exist; the others are named."""
    if not isinstance(config, PipelineConfig):
        yield config
        return
    from alignment.tasks.pipeline import composed_stages

    for stage, stage_config in composed_stages(config, compose)[1]:
        lacking = [f"{key}={path}" for key, path, place in input_places(stage_config) if not place.exists()]
        say(f"\n{stage.name} ({stage.recipe})" + (f": not checked, there is no {lacking[0]} yet" if lacking else ""))
        if not lacking:
            yield stage_config


def _grades(config: RunConfig) -> Iterator[Grade]:
    with importing():
        from alignment.check.run import check
    verdicts = check(config)
    while True:
        with working("the next line ..."):
            verdict = next(verdicts, None)
        if verdict is None:
            return
        verdict.print()
        if not is_read():
            verdicts.close()
            raise BrokenPipeError
        yield verdict.grade


def _take_part(config: RunConfig) -> None:
    """As one of the processes that the line about them has started; `config` is what they were given."""
    with importing():
        from alignment.check.ranks import take_part
        from alignment.tasks.run import leave_with_launcher
    try:
        take_part(config)
    except (UserError, Preempted) as error:
        if leave_with_launcher(error, is_user_error=True):
            end(EXIT_CODE if isinstance(error, Preempted) else USER_ERROR)
        raise

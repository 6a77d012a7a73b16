"""A key of a stage that was given to its pipeline: `train.max_steps=4`, answered with the key that is meant,
`stages.sft.set.train.max_steps=4`."""

from collections.abc import Mapping
from dataclasses import fields

from alignment.cli.spellings import SPELLINGS, keys_of
from alignment.config.errors import ConfigError
from alignment.config.run import RunConfig
from alignment.config.tasks import PipelineConfig, StageConfig
from alignment.user_error import nearest

PRESETS = ("model", "data")  # groups that stages have and a pipeline has not


def require_no_stage_keys(overrides: list[str], stages: Mapping[str, type[RunConfig] | None]) -> None:
    """`stages`: name -> the task's dataclass, None where it is not known.

    Raises:
        ConfigError: an override is of a key that stages have and the pipeline has not.
    """
    own = [field.name for field in fields(PipelineConfig)]
    for word in overrides:
        key, equals, value = word.partition("=")
        key = key.lstrip("+~")
        first, _, rest = key.partition(".")
        if not equals or first in own or first == "hydra" or "/" in key:
            continue
        if nearest(first, own):
            continue
        names, wanted = _with_key(key, stages)
        if wanted != key and first in stages:
            inside, rest = _with_key(rest, {first: stages[first]})
            names, wanted = ([first], rest) if inside else (names, wanted)
        if not names:
            way = (
                f"its own are {', '.join(own)}, a stage's stages.NAME.set.KEY={value}, NAME one of {', '.join(stages)}"
            )
            raise ConfigError(f"no such key {key!r} in a pipeline: {way}")
        if len(names) == 1:
            raise ConfigError(f"no such key {key!r} (did you mean 'stages.{names[0]}.set.{wanted}={value}'?)")
        way = f"stages.NAME.set.{wanted}={value}, NAME one of {', '.join(names)}"
        raise ConfigError(f"no such key {key!r} in a pipeline, whose stages have it: {way}")


def require_key_of_stage(name: str, rest: str, value: str) -> None:
    """`rest`: what is behind `stages.NAME`, `.set.seed`.

    Raises:
        ConfigError: it is a key of the stage's recipe, without its `set`.
    """
    first, *_ = rest.removeprefix(".").split(".")
    own = [field.name for field in fields(StageConfig)]
    if rest and first not in own and not nearest(first, own):
        raise ConfigError(f"no such key 'stages.{name}{rest}' (did you mean 'stages.{name}.set{rest}{value}'?)")


def _with_key(key: str, stages: Mapping[str, type[RunConfig] | None]) -> tuple[list[str], str]:
    """The stages that have the key, and what they call it, where it is typed in short or as in another library."""
    known = {name: list(keys_of(root)) for name, root in stages.items() if root is not None}
    last = key.rpartition(".")[2]
    longer = {each for keys in known.values() for each in keys if each.endswith(f".{key}")}
    for wanted in (key, *SPELLINGS.get(key, ()), *sorted(longer), *SPELLINGS.get(last, ())):
        names = [name for name, keys in known.items() if _has(keys, wanted)]
        if names:
            return [name for name, root in stages.items() if name in names or root is None], wanted
    return [], ""


def _has(keys: list[str], key: str) -> bool:
    """A key, a preset's group, or an entry of a mapping that users fill."""
    if key in PRESETS:
        return any(each.startswith(f"{key}.") for each in keys)
    return key in keys or any(key.startswith(f"{each}.") for each in keys)

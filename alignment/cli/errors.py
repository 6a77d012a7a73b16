"""One line for each mistake: recipe or key, the rule, the value, and the nearest valid name."""

from dataclasses import fields, is_dataclass
from difflib import get_close_matches

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from alignment.cli.compose import recipes, shipped


def explain(error: BaseException) -> str:
    """What went wrong while a config was composed, in one line."""
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: {_first_line(error.message)}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return _bad_key_or_value(cause)
    return _first_line(str(error))


def nearest(name: str, names: list[str]) -> str:
    """` (did you mean 'beta'?)`, or nothing where no name is near."""
    near = get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _missing_file(error: MissingConfigException) -> str:
    """A recipe, or a preset of a group, that is not there."""
    wanted = (error.missing_cfg_file or "").removesuffix(".yaml")
    if error.options is None:
        names = list(recipes([shipped("recipes")]))
        return f"no recipe {wanted!r}{nearest(wanted, names)}; `alignment recipes` lists them"
    group, _, choice = wanted.rpartition("/")
    options = list(error.options)
    return f"{group} must be one of {', '.join(options)}, got {choice!r}{nearest(choice, options)}"


def _bad_key_or_value(error: OmegaConfBaseException) -> str:
    key = error.full_key or str(error.key)
    message = _first_line(error.msg or str(error))
    if "not in" not in message:
        return f"{key}: {message}"
    owner = error.object_type
    names = [field.name for field in fields(owner)] if is_dataclass(owner) else []
    hint = nearest(key.rpartition(".")[2], names)
    return f"no such key {key!r}{hint}" + (f"; valid here: {', '.join(names)}" if names and not hint else "")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]

"""The verbs that look at models and rows, in one process: their config is a recipe's, mostly `evaluate`'s."""

from typing import cast

from alignment.cli.compose import composing, resolve, single
from alignment.cli.config_errors import COMPOSE_ERRORS, error_line, told_by
from alignment.cli.overrides import readable, written
from alignment.config.errors import require
from alignment.config.evaluate import EvaluateConfig
from alignment.config.run import RunConfig
from alignment.hub.pin import pinned
from alignment.user_error import fail

RECIPE = "evaluate"
OF_MODELS = ("model.path", "model.tokenizer")  # keys of a model, whatever names it
TYPED = {  # verb: key that it sets, and the word of its usage that says to what
    "chat": {"runs.model": "MODEL", "model.tokenizer": "MODEL"},
    "score": {"reward": "MODEL", "model.tokenizer": "MODEL", "pairs.eval.path": "FILE"},
}
NAME_ANOTHER = ", so name the folder of one by model.tokenizer"


def evaluation_config(verb: str, overrides: list[str]) -> EvaluateConfig:
    """The recipe with these keys, its names on the hub fetched and its inputs found; a mistake ends the command."""
    return cast(EvaluateConfig, looked_at(verb, RECIPE, overrides))


def looked_at(verb: str, recipe: str, overrides: list[str]) -> RunConfig:
    """The same of any recipe, of which nothing is run."""
    with composing([]):
        try:
            config = pinned(resolve(single(recipe, overrides)))
            rule = f"launch.vllm must be 0 for `alignment {verb}`, which starts no server"
            require(config.launch.vllm == 0, rule, config.launch.vllm)
        except COMPOSE_ERRORS as error:
            fail(f"{verb}: {in_words_of(verb, error_line(error, overrides))}")
    return config


def in_words_of(verb: str, line: str) -> str:
    """A mistake in a key that the verb sets, told by the word of its usage; a tokenizer is the model's own, for these
    verbs have no key for another."""
    if verb not in TYPED:
        return line
    nested = {f"{key}: {own}": word for key, word in TYPED[verb].items() for own in OF_MODELS}
    line = told_by(line, {**nested, **TYPED[verb]})
    return line.replace(NAME_ANOTHER, "; a model's folder has it beside the weights")


def set_to(key: str, value: object) -> str:
    """`key=value`, whatever signs the value has."""
    return f"{key}={written(value)}"


def as_typed(words: list[str]) -> list[str]:
    """What a user has typed as key=value, in Hydra's grammar."""
    return [readable(word, is_sweep=False) for word in words]

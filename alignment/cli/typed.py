"""What is typed, of keys of which one takes the other's place: the run's length in steps or in passes, a model of a
folder or of a config, an adapter that is trained on or a new one.
"""

from collections.abc import Iterable
from dataclasses import fields

from omegaconf import DictConfig, OmegaConf

from alignment.cli.sources import parts
from alignment.config.adapter import require_own_shape
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.run import RunConfig, TrainingConfig

LENGTH = ("train.max_steps", "train.epochs")
OF_AN_ADAPTER = (
    *("rank", "alpha", "rank_pattern", "alpha_pattern", "targets", "rslora", "dora", "init", "modules_to_save"),
    "target_parameters",
)
"""Of `model.lora`, what is the adapter's own; the rest is how the run trains it."""
FORMER = {"alpha": 16, "rslora": False}  # defaults, and so in the config.yaml of earlier runs that have no adapter


def with_one_length(overrides: list[str]) -> list[str]:
    """A user who gives the run's length in steps, or in passes, takes it in place of the recipe's, which may have it in
    the other."""
    given = {key: value for key, _, value in (word.lstrip("+").partition("=") for word in overrides) if key in LENGTH}
    asked = [key for key, value in given.items() if value != "null"]
    if len(given) != 1 or len(asked) != 1:
        return overrides
    return [*overrides, *(f"{key}=null" for key in LENGTH if key not in given)]


def require_init_read(config: RunConfig, overrides: Iterable[str]) -> None:
    """A folder's model may be asked for beside a preset's `init`, as in a recipe of toys; not beside a typed one.

    Raises:
        ConfigError: a typed `model.init` would do nothing.
    """
    of_folder = {
        field.name: value.path
        for field in fields(config)
        if isinstance(value := getattr(config, field.name), ModelConfig) and value.path is not None
    }
    for key, equals, _ in (word.lstrip("+").partition("=") for word in overrides):
        part, _, inner = key.partition(".")
        if equals and part in of_folder and f"{inner}.".startswith("init."):
            rule = f"{key} goes with {part}.path=null, a random model (a folder's has its own sizes)"
            raise ConfigError(f"{rule}: leave out one of the two, got {part}.path={of_folder[part]!r}")


def leave_shape_unread(tree: DictConfig, overrides: Iterable[str]) -> None:
    """What a recipe says of a new adapter is left unread beside `model.adapter`, whose shape is its own, and where the
    rank is typed as 0, which asks for none; so are former defaults of a run that has none. What is typed stays: it
    acts, or is refused."""
    typed = _keys(overrides)
    for part, node in parts(tree):
        key = f"{part}.lora"
        if OmegaConf.get_type(node) is not ModelConfig or key in typed:
            continue
        names: Iterable[str] = ()
        if node.lora.rank == 0 and f"{key}.rank" in typed:
            names = [each.name for each in fields(LoraConfig)]
        elif node.adapter is not None:
            names = OF_AN_ADAPTER
        elif node.lora.rank == 0 and all(node.lora[name] == value for name, value in FORMER.items()):
            names = FORMER
        for name in names:
            if f"{key}.{name}" not in typed:
                node.lora[name] = getattr(LoraConfig(), name)


def require_shape_read(config: RunConfig, overrides: Iterable[str]) -> None:
    """Raises:
    ConfigError: a typed key of `model.lora` says otherwise than the adapter that is trained on, were it the default.
    """
    if isinstance(config, TrainingConfig):
        inner = (key.removeprefix("model.lora.") for key in _keys(overrides) if key.startswith("model.lora."))
        require_own_shape(config.model, sorted(inner))


def _keys(overrides: Iterable[str]) -> set[str]:
    return {word.lstrip("+").partition("=")[0] for word in overrides}

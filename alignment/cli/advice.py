"""What is said of a run's values before it starts: whose they are by the recipe's name, and an alpha from elsewhere."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from alignment.config.data import Format
from alignment.config.errors import require
from alignment.config.evaluate import EvaluateConfig
from alignment.config.hub import located
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.optimizer import RATES
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import RejectionConfig
from alignment.config.train import LEARNING_RATE, LearningRateRule

TOY = "tiny_"
ON_EIGHT = "_8x80gb"  # recipes of a method whose rate they leave as it is
ON_ONE = "_24gb"  # and those that have the rate of adapters
TOY_BYTES = 40_000_000  # ten million weights
LORA_RATES = {  # of adapters, by the recipes whose own rates are for all weights; each recipe says where it is from
    "sft": 2e-4,
    "reward": 1e-4,
    "reward_regression": 1e-4,
    "reward_process": 1e-4,
    "dpo": 5e-6,
    "orpo": 8e-5,
    "simpo": 5e-6,
    "cpo": 1e-4,
    "kto": 5e-6,
    "online_dpo": 5e-6,
    "ppo": 1e-5,
    "grpo": 1e-5,
    "rloo": 3e-5,
    "reinforce_pp": 5e-6,
}
USUAL_SCALE = 4.0  # of adapters' outputs; a rank of 16 with the alpha of 32 that peft's users give it has 2


def advice(recipe: str, config: RunConfig, *, own_rate: bool, within: Path | None = None) -> list[str]:
    """Lines on values that are not for this model, or are likely to be meant otherwise.

    Args:
        own_rate: whether the learning rate is the user's own and not the recipe's.
        within: the folder of the pipeline that it is a stage of, whose other stages make models for its recipe.
    """
    on_values = _on_values(recipe, config, own_rate=own_rate, within=within)
    on_optimizer = [] if own_rate else _on_optimizer(recipe, config, within)
    return [*([] if on_values is None else [on_values]), *on_optimizer, *_on_scales(config, within)]


def _on_values(recipe: str, config: RunConfig, *, own_rate: bool, within: Path | None) -> str | None:
    if not isinstance(config, (TrainingConfig, RejectionConfig, EvaluateConfig)):
        return None
    path = None if isinstance(config, EvaluateConfig) else config.model.path
    if config.data.format is Format.toy and (path is None or not _is_large(located(path))):
        return None  # a toy's values are right for toys
    is_foreign = isinstance(config, EvaluateConfig) or (path is not None and located(path).exists())
    is_made = within is not None and path is not None and Path(path).is_relative_to(within)
    if recipe.startswith(TOY) and is_foreign and not is_made:
        other = recipe.removeprefix(TOY)
        rate = f"train.learning_rate={config.train.learning_rate:g}, " if isinstance(config, TrainingConfig) else ""
        return f"WARNING: {recipe}'s values ({rate}its lengths) are for toy models; for yours take the recipe {other}"
    method, is_of_adapters = _method(recipe), recipe.endswith(ON_ONE)
    if method not in LORA_RATES or not isinstance(config, TrainingConfig) or own_rate:
        return None
    if config.train.optimizer in RATES:
        return None  # whose rates are others in either case: see below
    said, key = _rate_is_for(recipe, config), _before(config, within)
    if is_of_adapters and not config.model.lora.rank:
        return f"{said} adapters; for all weights there is that of the recipe {method}"
    if config.model.lora.rank and not is_of_adapters:
        return f"{said} all weights; adapters take about {key}train.learning_rate={LORA_RATES[method]:g}"
    return None


def _on_optimizer(recipe: str, config: RunConfig, within: Path | None) -> Iterator[str]:
    """Shipped rates are AdamW's, and so is the one of a recipe of the user's own that leaves it as it is."""
    if not isinstance(config, TrainingConfig) or (own := RATES.get(config.train.optimizer)) is None:
        return
    is_shipped = recipe.startswith(TOY) or _method(recipe) in LORA_RATES
    if is_shipped or config.train.learning_rate == LEARNING_RATE:
        takes = f"AdamW; {config.train.optimizer.value} takes {own}"
        yield f"{_rate_is_for(recipe, config)} {takes}: {_before(config, within)}train.learning_rate=RATE"


def _method(recipe: str) -> str:
    return recipe.removesuffix(ON_EIGHT).removesuffix(ON_ONE)


def _rate_is_for(recipe: str, config: TrainingConfig) -> str:
    return f"WARNING: {recipe}'s learning rate {config.train.learning_rate:g} is for"


def _before(config: RunConfig, within: Path | None) -> str:
    """What stands before a key of the config where it is typed."""
    return f"stages.{Path(config.output_dir).name}.set." if within is not None else ""


def _on_scales(config: RunConfig, within: Path | None) -> Iterator[str]:
    """An alpha that is from runs which divide it by the rank is several times too much for the rank's root."""
    models = {field.name: getattr(config, field.name) for field in fields(config)}
    for name, model in models.items():
        if not isinstance(model, ModelConfig) or model.lora.rank == 0 or not model.lora.rslora or model.adapter:
            continue  # a saved one has what it was trained with
        rank, alpha = model.lora.rank, max([model.lora.alpha, *model.lora.alpha_pattern.values()])
        if alpha != LoraConfig().alpha and (scale := alpha / rank**0.5) > USUAL_SCALE:
            key = f"{_before(config, within)}{name}"
            said = f"WARNING: {key}.lora: adapters' outputs are scaled by alpha / sqrt(rank), {scale:.3g} here"
            yield f"{said}; for peft's and TRL's alpha / rank, {alpha / rank:.3g}, say {key}.lora.rslora=false"


def require_one_rate(config: RunConfig, *, own_rate: bool) -> None:
    """Raises:
    ConfigError: the user gives a learning rate, and a rule that takes its place.
    """
    if own_rate and isinstance(config, TrainingConfig):
        rule = "train.learning_rate_rule must be none beside a learning rate of your own: leave out one of the two"
        require(config.train.learning_rate_rule is LearningRateRule.none, rule, config.train.learning_rate_rule.value)


def _is_large(folder: Path) -> bool:
    """Whether the folder holds the weights of no toy."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) > TOY_BYTES

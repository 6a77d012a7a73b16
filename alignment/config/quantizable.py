"""Whether a model can be put beside its quantised selves: by its files alone, before anything is read."""

from pathlib import Path

from alignment.config.errors import ConfigError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.folders import find_model
from alignment.config.hub import located
from alignment.config.model_kinds import quantized_by
from alignment.config.run import RunConfig
from alignment.config.saved_prompt import is_soft_prompt


def require_quantizable(config: RunConfig) -> None:
    """Raises:
    ConfigError: the weights of the model that `quantized` is of are packed already, or, for a self that is packed as
        they are read, there is an adapter to be added to them first.
    """
    if not isinstance(config, EvaluateConfig) or not config.quantized:
        return
    key, path = quantized_model(config)
    place = located(path)
    own = place / "model" if (place / "model").is_dir() else Path(place)
    if (method := quantized_by(key, own)) is not None:
        rule = f"quantized must be [] for {key} {path!r}, whose weights are quantized already, by {method}"
        raise ConfigError(f"{rule}, got {[each.value for each in config.quantized]}")
    packed = [each.value for each in config.quantized if each.is_packed]
    adapters = find_model(str(own), key, trusted=config.trust_remote_code).adapters if packed else ()
    if any(map(is_soft_prompt, adapters)):
        rule = f"quantized={packed[0]} needs a model of weights alone in {key}, got a soft prompt, {path!r}"
        raise ConfigError(f"{rule}: absmax8 and the like round the weights beside it")
    if adapters:
        rule = f"quantized={packed[0]} needs whole weights in {key}, which are packed as they are read, got an adapter"
        way = "peft's merge_and_unload makes whole ones, and absmax8 and the like round what the two add up to"
        raise ConfigError(f"{rule}, {path!r}: {way}")


def quantized_model(config: EvaluateConfig) -> tuple[str, str]:
    """The key and the path of the model that `quantized` is of: the baseline, or the reward model where it is alone."""
    if config.runs:
        return f"runs.{config.baseline}", config.runs[config.baseline]
    assert config.reward is not None
    return "reward", config.reward

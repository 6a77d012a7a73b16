"""Rules that hold between parts of a config."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from alignment.config.enums import Attention, Device, Format, Gather, Generation
from alignment.config.generation import GenerationConfig
from alignment.config.sections import ConfigError, DataConfig, DistributedConfig, ModelConfig, require

WORLD = "alignment.world."


@contextmanager
def told_of(key: str) -> Iterator[None]:
    """Inside, an error of a config that is built here is told under the key by which its user knows it."""
    try:
        yield
    except ConfigError as error:
        raise error if str(error).startswith(key) else ConfigError(f"{key}: {error}") from error


def require_rows(data: DataConfig, name: str) -> None:
    """Raise `ConfigError` where the split `name`, `train` or `eval`, has no source."""
    source = {"train": data.train, "eval": data.eval}[name]
    key, value = ("limit", source.limit) if data.format is Format.world else ("path", source.path)
    require(value is not None, f"data.{name}.{key} is required for data.format={data.format.value}", value)


def require_own_world(data: DataConfig, functions: dict[str, str | None]) -> None:
    """Raise `ConfigError` where a function that knows the embedded world's questions alone is to score replies to other
    ones. `functions`: key -> dotted path."""
    for key, path in functions.items():
        if path is not None and path.startswith(WORLD) and data.format is not Format.world:
            rule = f"{key}={path} knows the embedded world's questions alone (data.format=world): set {key} to null"
            raise ConfigError(f"{rule}, or to a function of your own, with data.format={data.format.value}")


def require_device(model: ModelConfig, distributed: DistributedConfig) -> None:
    """Raise `ConfigError` where the attention asked for is for another device."""
    if model.attention is Attention.flex_attention:
        rule = "model.attention=flex_attention needs distributed.device=cuda"
        require(distributed.device is Device.cuda, rule, distributed.device.value)


def require_generator(generation: GenerationConfig, distributed: DistributedConfig) -> None:
    """Raise `ConfigError` where the weights are not placed as the generator wants them."""
    rule = "distributed.zero must be null with generation.engine=vllm, which is told the weights of one process"
    require(generation.engine is not Generation.vllm or distributed.zero is None, rule, distributed.zero)
    rule = "generation.gather=layer needs distributed.zero=3"
    require(generation.gather is Gather.model or distributed.zero == 3, rule, distributed.zero)


def require_served(generation: GenerationConfig, model: ModelConfig) -> None:
    """Raise `ConfigError` where the generator's server has another vocabulary than the model that it replies with."""
    rule = "model.resize_embeddings must be false with generation.engine=vllm, whose server has the folder's vocabulary"
    require(generation.engine is not Generation.vllm or not model.resize_embeddings, rule, model.resize_embeddings)


def require_temperatures(temperatures: list[float], samples: int, generation: GenerationConfig) -> None:
    """As many replies at each, which takes the place of generation.temperature."""
    positive = all(0 < each < math.inf for each in temperatures)
    require(
        positive and len(set(temperatures)) == len(temperatures),
        "temperatures must be > 0, and each another",
        temperatures,
    )
    rule = f"samples must be a multiple of the number of temperatures ({len(temperatures)})"
    require(samples % len(temperatures) == 0, rule, samples)
    rule = "generation.temperature must be left at 1 with temperatures, which take its place"
    require(generation.temperature == 1, rule, generation.temperature)

"""What the shared layout asks of an architecture, and its layers: they see all that comes before, or a window of it."""

import inspect

from transformers import PreTrainedConfig, PreTrainedModel

from alignment.config.errors import ConfigError

FULL, SLIDING = "full_attention", "sliding_attention"


def sliding_window(config: PreTrainedConfig) -> int | None:
    """The window of a model's sliding layers, in tokens; None for a model that has none."""
    settings = config.to_dict()
    return (
        settings["sliding_window"]
        if settings.get("use_sliding_window", True) and "sliding_window" in settings
        else None
    )


def layer_kinds(config: PreTrainedConfig) -> list[str]:
    """The kind of each layer, full or sliding.

    Raises:
        ConfigError: the model has layers of another kind, which the branch mask cannot serve.
    """
    declared = config.to_dict().get("layer_types")
    if declared is None:
        return [FULL if sliding_window(config) is None else SLIDING]
    if unknown := unknown_kinds(config):
        rule = f"batch.layout must be separate for layers of kind {unknown[0]!r}"
        raise ConfigError(f"{rule}, got 'shared'")
    return list(declared)


def unknown_kinds(config: PreTrainedConfig) -> list[str]:
    """Of a model's layers, those that are neither full nor sliding."""
    return sorted(set(config.to_dict().get("layer_types") or ()) - {FULL, SLIDING})


def head_sizes(config: PreTrainedConfig) -> list[int]:
    """In numbers, of queries and keys, of values, or of parts of them, where a config tells them apart."""
    sizes = [size for name, size in config.to_dict().items() if name.endswith("head_dim") and isinstance(size, int)]
    return sizes or [head_size(config)]


def head_size(config: PreTrainedConfig) -> int:
    """In numbers, where a config does not name it."""
    return int(config.hidden_size // config.num_attention_heads)


def check_branches(hf: PreTrainedModel) -> None:
    """What the shared layout asks of an architecture: it is told its positions, and its mask says all that is seen.

    Recurrent layers see whatever stands before them; attention of an architecture's own making may measure distance in
    the row (ALiBi, GPT-Neo's local layers) or read the mask in a form of its own.

    Raises:
        ConfigError: the architecture does not promise that.
    """
    if not sees_by_mask(hf):
        name = type(hf).__name__
        raise ConfigError(f"batch.layout must be separate for this architecture, got 'shared' for {name}")


def sees_by_mask(hf: PreTrainedModel) -> bool:
    """Whether an architecture is told its positions, and promises that its mask says all that is seen."""
    is_told_positions = "position_ids" in inspect.signature(hf.base_model.forward).parameters
    return is_told_positions and not hf._is_stateful and hf._supports_attention_backend

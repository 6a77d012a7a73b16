"""Weights that bitsandbytes has quantised (4 or 8 bits): read as they are, trained by an adapter alone, saved whole."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from alignment.config.errors import ConfigError
from alignment.config.model import ModelConfig
from alignment.config.packages import QUANTIZER, is_installed, quantizer_lacks
from alignment.distributed.placement import Placement, Whole

HEADS = ["lm_head", "score"]
"""Kept as they are: an output layer has few weights for what hangs on each, and a scalar head is trained in full."""


def check_quantized(config: PreTrainedConfig, placement: Placement, where: str) -> None:
    """Raises:
    ConfigError: the weights are quantised, and by another method, without the package, or sharded among processes.
    """
    settings = quantization_of(config)
    if settings is None:
        return
    method = str(settings.get("quant_method"))
    if method != QUANTIZER:
        raise ConfigError(f"{where} must be in whole weights or quantized by {QUANTIZER}, got quant_method={method!r}")
    if not is_installed(QUANTIZER):  # of a run this is told before, by the files of its models
        raise ConfigError(quantizer_lacks(where))
    if not isinstance(placement, Whole):
        raise ConfigError(f"distributed.zero must be null, 0, 1 or 2 for {where}, whose weights are quantized, got 3")
    settings.setdefault("llm_int8_skip_modules", HEADS)


def require_adapter(config: PreTrainedConfig, asked: ModelConfig, where: str) -> None:
    """Raises:
    ConfigError: the weights, which are to be trained, are quantised, and no adapter is asked for.
    """
    settings = quantization_of(config)
    if settings is not None and settings.get("quant_method") == QUANTIZER and not asked.lora.rank:
        raise ConfigError(f"model.lora.rank must be > 0 for {where}, whose weights are quantized, got 0")


def quantization_of(config: PreTrainedConfig) -> dict[str, Any] | None:
    """What config.json says of how the weights are quantised; None where they are not."""
    settings: Any = vars(config).get("quantization_config")
    return settings if settings is None or isinstance(settings, dict) else settings.to_dict()


def is_quantized(module: nn.Module) -> bool:
    """Whether it is a layer whose weight bitsandbytes has packed."""
    return type(module._parameters.get("weight")).__name__ in ("Params4bit", "Int8Params")


def keep_packing(hf: nn.Module) -> None:
    """Have packed weights stay as they were read.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 packs a layer of 4 bits anew in its first forward that learns nothing,
    for a product that rounds to bfloat16, has no gradient ever after, and fails on widths below a block's.
    """
    module: Any
    for module in hf.modules():
        if is_quantized(module) and "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False


def whole_weight(module: Any) -> Tensor:
    """The weight of a layer in the precision that it computes in."""
    weight: Tensor = module.weight
    if is_quantized(module):
        from peft.utils.integrations import dequantize_module_weight  # not above: it is slow, and most models are whole

        weight = dequantize_module_weight(module)
    return weight.detach()

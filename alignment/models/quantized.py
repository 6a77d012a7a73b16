"""Weights that bitsandbytes has quantised (4 or 8 bits), or quantises as they are read: trained by an adapter alone,
saved whole."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment.config.errors import ConfigError
from alignment.config.folders import ModelFolder
from alignment.config.model import ModelConfig, Quantization
from alignment.config.packages import is_installed, quantizer_lacks
from alignment.config.packed_base import QUANTIZER
from alignment.config.saved_prompt import is_soft_prompt
from alignment.distributed.placement import Placement, Whole
from alignment.models.autocast import as_autocast_reads
from alignment.models.blocks_4bit import unpack_by_blocks

HEADS = ["lm_head", "score"]
"""Kept as they are: an output layer has few weights for what hangs on each, and a scalar head is trained in full."""
ASKED: dict[Quantization, dict[str, Any]] = {
    Quantization.nf4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    Quantization.int8: {"load_in_8bit": True},
}
"""In transformers' words, for BitsAndBytesConfig."""
LEAST_BITS = {Quantization.nf4: 4, Quantization.int8: 8}
"""Of a packed weight, without the scales beside it."""


def ask_packing(
    config: PreTrainedConfig, asked: ModelConfig, compute: torch.dtype, where: str, folder: ModelFolder
) -> None:
    """Have a model's config say what `model.quantization` asks for: transformers then packs each weight as it is read.

    Args:
        compute: what products are computed in, to which packed weights are unpacked for them.

    Raises:
        ConfigError: they are packed already, or an adapter would have to be rounded into them.
    """
    if not asked.is_packed:
        return
    name = asked.quantization.value
    if (settings := quantization_of(config)) is not None:
        what = f"whose weights are quantized already, by {settings.get('quant_method')}"
        raise ConfigError(f"model.quantization must be none for {where}, {what}, got {name!r}")
    if folder.adapters:
        rule = f"model.quantization={name} needs whole weights in {where}, got an adapter that would be rounded into "
        way = "model.adapter trains it on, and peft's merge_and_unload makes whole weights"
        raise ConfigError(f"{rule}packed ones, {folder.adapters[0]}: {way}")
    vars(config)["quantization_config"] = {"quant_method": QUANTIZER, **ASKED[asked.quantization]}
    if asked.quantization is Quantization.nf4:
        vars(config)["quantization_config"]["bnb_4bit_compute_dtype"] = str(compute).removeprefix("torch.")


def is_unpacked(folder: ModelFolder) -> bool:
    """Whether weights that are packed are unpacked as they are read: an adapter is merged into them, which would be
    rounded away in packed ones."""
    return not all(is_soft_prompt(adapter) for adapter in folder.adapters)


def as_read(config: PreTrainedConfig, folder: ModelFolder) -> PreTrainedConfig:
    """The config of the model that is read from there."""
    if is_unpacked(folder):
        vars(config).pop("quantization_config", None)
    return config


def check_quantized(config: PreTrainedConfig, placement: Placement, where: str, folder: ModelFolder) -> None:
    """Raises:
    ConfigError: the weights are quantised, and by another method, without the package, to 8 bits and sharded, or
        sharded and to be unpacked.
    """
    settings = quantization_of(config)
    if settings is None:
        return
    method = str(settings.get("quant_method"))
    if method != QUANTIZER:
        raise ConfigError(f"{where} must be in whole weights or quantized by {QUANTIZER}, got quant_method={method!r}")
    if not is_installed(QUANTIZER):  # of a run this is told before, by the files of its models
        raise ConfigError(quantizer_lacks(where))
    if not isinstance(placement, Whole) and is_unpacked(folder):
        rule = f"distributed.zero must be null, 0, 1 or 2 for {where}, an adapter on a base that is quantized, which is"
        raise ConfigError(f"{rule} unpacked to merge it, got 3 (a run with model.lora.merge=true leaves whole weights)")
    if not isinstance(placement, Whole) and not settings.get("load_in_4bit"):
        rule = f"distributed.zero must be null, 0, 1 or 2 for {where}, whose weights are quantized to 8 bits"
        raise ConfigError(f"{rule}: their layers hold on to them where ZeRO 3 would take them away, got 3")
    settings.setdefault("llm_int8_skip_modules", HEADS)


def require_adapter(config: PreTrainedConfig, asked: ModelConfig, where: str) -> None:
    """Raises:
    ConfigError: the weights, which are to be trained, are quantised, and no adapter is asked for.
    """
    settings = quantization_of(config)
    if settings is not None and settings.get("quant_method") == QUANTIZER and not asked.has_adapter:
        raise ConfigError(f"model.lora.rank must be > 0 for {where}, whose weights are quantized, got 0")


def quantization_of(config: PreTrainedConfig) -> dict[str, Any] | None:
    """What config.json says of how the weights are quantised; None where they are not."""
    settings: Any = vars(config).get("quantization_config")
    return settings if settings is None or isinstance(settings, dict) else settings.to_dict()


def is_quantized(module: nn.Module) -> bool:
    """Whether it is a layer whose weight bitsandbytes has packed."""
    return type(module._parameters.get("weight")).__name__ in ("Params4bit", "Int8Params")


def settle_packed(hf: nn.Module, asked: ModelConfig, placement: Placement) -> dict[str, str]:
    """Have products with packed weights compute as those with others do: within autocast in its dtype, outputs too; and
    those with sharded ones keep nothing of what is gathered for them.

    Returns:
        The names of weights that have another shape in the file than in the model, which transformers does not see of
        weights that it packs, each with what is wrong.
    """
    keep_packing(hf)
    wrong = {}
    layer: Any
    for name, layer in packed_layers(hf):
        layer.register_forward_pre_hook(as_autocast_reads)
        state, own = vars(layer.weight).get("quant_state"), [layer.out_features, layer.in_features]
        if asked.is_packed and state is not None:
            state.dtype = placement.compute  # of what it is unpacked to; read in float32, it was packed from that
        if state is not None and not isinstance(placement, Whole):
            from alignment.models.gathered_4bit import Gathered4bit  # not above: bitsandbytes need not be there

            layer.__class__ = Gathered4bit
        shape = list(layer.weight.shape if state is None else state.shape)
        if shape != own:
            wrong[f"{name}.weight"] = f"{name}.weight of shape {shape}, not {own},"
    return wrong


def packed_layers(hf: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in hf.named_modules() if is_quantized(module)]


def packed_size(weight: Tensor) -> tuple[int, int] | None:
    """Bytes of a weight in 4 bits, all of them wherever they are, and of all that unpacks it, which no stage of ZeRO
    shares out; None of any other."""
    state: Any = vars(weight).get("quant_state")
    if state is None:
        return None
    parts = [state.absmax, state.code]
    parts += [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
    number: int = vars(weight).get("ds_numel", weight.numel())
    return number * weight.element_size(), sum(each.numel() * each.element_size() for each in parts)


def not_finite_packed(hf: nn.Module) -> list[str]:
    """The names of weights in which some number was none, or infinite, before they were packed: so are their scales."""
    found = []
    layer: Any
    for name, layer in packed_layers(hf):
        kept = vars(layer.weight)
        state, scales = kept.get("quant_state"), kept.get("SCB")
        if state is not None:
            scales = state.offset if state.nested else state.absmax
        if scales is not None and not scales.isfinite().all():
            found.append(f"{name}.weight")
    return found


def keep_packing(hf: nn.Module) -> None:
    """Have packed weights stay as they were read, and be read as they were packed.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 packs a layer of 4 bits anew in its first forward that learns nothing,
    for a product that rounds to bfloat16, has no gradient ever after, and fails on widths below a block's.
    """
    module: Any
    for module in hf.modules():
        if is_quantized(module) and "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False
            unpack_by_blocks()


def keep_scales(hf: nn.Module) -> None:
    """Have layers of 8 bits hold their scales where the first forward puts them, for good.

    On a CPU peft's DoRA gives a layer whose weight it has unpacked a new one without scales, from which bitsandbytes
    takes them anew in the next forward.
    """
    module: Any
    for module in hf.modules():
        if is_quantized(module) and "CB" in vars(module.weight):
            if module.weight.CB is not None:
                module.init_8bit_state()
            module.init_8bit_state = _nothing


def _nothing() -> None:
    """In the place of what is done already."""


@torch.no_grad()
def unpack_layers(hf: PreTrainedModel, dtype: torch.dtype) -> None:
    """Put layers of whole weights, in that dtype, in place of packed ones, as if the model had never been packed."""
    layer: Any
    for name, layer in packed_layers(hf):
        weight = as_in_file(layer, whole_weight(layer)).to(dtype)
        with torch.device("meta"):
            whole = Conv1D(*weight.shape[::-1]) if _is_turned(layer) else nn.Linear(*weight.shape[::-1])
        whole.weight, whole.bias = nn.Parameter(weight), layer.bias
        hf.set_submodule(name, whole)
    quantizer: Any = vars(hf)["hf_quantizer"]
    quantizer.remove_quantization_config(hf)
    for packed in ("is_loaded_in_4bit", "is_loaded_in_8bit", "_weight_conversions"):  # of how its files were read
        vars(hf).pop(packed, None)


def as_in_file(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a layer, which may be a packed one, as the files of its model have it: GPT-2's have theirs the
    other way round."""
    return weight.T.contiguous() if is_quantized(layer) and _is_turned(layer) else weight


def _is_turned(layer: nn.Module) -> bool:
    return issubclass(vars(layer)["source_cls"], Conv1D)  # what transformers has packed


def whole_weight(layer: Any) -> Tensor:
    """The weight of a layer in the precision that it computes in."""
    weight: Tensor = layer.weight
    if not is_quantized(layer):
        return weight.detach()
    import bitsandbytes.functional as quantizer  # not above: most models are whole, and it need not be there

    if (state := vars(weight).get("quant_state")) is not None:
        return quantizer.dequantize_4bit(weight.data, state)
    scales = vars(weight)["SCB"] if layer.state.SCB is None else layer.state.SCB  # which the first forward moves
    return quantizer.int8_vectorwise_dequant(weight.data, scales)

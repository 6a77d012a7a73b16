"""An adapter whose base was packed as it was read: its folder notes how, for the base's own folder holds whole weights,
and on those the adapter is part of another model."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment.config.errors import ConfigError
from alignment.config.folders import MODEL_FILE, read_json
from alignment.config.hub import located
from alignment.config.packages import ON_PACKED, is_installed, quantizer_lacks
from alignment.config.packed_base import NOTE, QUANTIZER, name_of_packing, packing_of
from alignment.distributed.placement import Placement
from alignment.models.blocks_4bit import unpack_by_blocks
from alignment.models.packed import packable_layers
from alignment.models.quantized import HEADS, quantization_of
from alignment.terminal import say_once

NOTED = ("quant_method", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
"""Of transformers' words those by which weights become others."""


def note_packing(hf: PreTrainedModel, folder: Path) -> None:
    """Into the folder of an adapter on this model; nothing where its base's folder says so itself, or is read whole."""
    settings, own = quantization_of(hf.config), located(str(hf.name_or_path)) / MODEL_FILE
    if settings is None or (own.is_file() and "quantization_config" in read_json(own, "model.path")):
        (folder / NOTE).unlink(missing_ok=True)
        return
    noted = {name: settings[name] for name in NOTED if name in settings}
    (folder / NOTE).write_text(json.dumps(noted, indent=2) + "\n")


@torch.no_grad()
def round_base(hf: PreTrainedModel, adapter: Path, key: str, placement: Placement) -> None:
    """Put in place of each weight of the base that was packed under the adapter what it was unpacked to.

    Raises:
        ConfigError: the adapter's folder notes that in no such way, or bitsandbytes is not installed.
    """
    settings = packing_of(adapter, key)
    if settings is None:
        return
    if not is_installed(QUANTIZER):
        raise ConfigError(quantizer_lacks(f"{key}: the adapter in {str(adapter)!r}", ON_PACKED))
    unpack_by_blocks()
    for _, layer in packable_layers(hf, HEADS):
        with placement.whole([layer.weight], write=True):
            rows = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
            rows.copy_(_unpacked(rows.float().contiguous(), settings))
    bits = 4 if settings.get("load_in_4bit") else 8
    say_once(f"{key}: the base of the adapter in {adapter} is read as {bits} bits hold it, on which it was trained")


def say_packed_otherwise(hf: PreTrainedModel, adapter: Path, key: str) -> None:
    """Where an adapter goes on on a base that is not packed as the one it was trained on; of one that notes nothing
    there is nothing to say."""
    noted, now = packing_of(adapter, key), quantization_of(hf.config) or {}
    if noted is not None and (own := name_of_packing(noted)) != name_of_packing(now):
        say_once(f"{key}: {adapter} was trained on a base that was packed: model.quantization={own} is how")


def _unpacked(rows: Tensor, settings: dict[str, Any]) -> Tensor:
    """[outputs, inputs] float32, packed and unpacked again."""
    import bitsandbytes.functional as quantizer  # not above: most models are whole, and it need not be there

    if not settings.get("load_in_4bit"):
        codes, scales, _ = quantizer.int8_vectorwise_quant(rows.half())
        return quantizer.int8_vectorwise_dequant(codes, scales)
    kind, is_nested = settings.get("bnb_4bit_quant_type", "fp4"), bool(settings.get("bnb_4bit_use_double_quant"))
    packed, state = quantizer.quantize_4bit(rows, quant_type=kind, compress_statistics=is_nested)
    return quantizer.dequantize_4bit(packed, state)

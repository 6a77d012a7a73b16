"""Packed weights before they are there: the bytes that each takes, and layers without numbers that make and drop what
bitsandbytes' layers do in a pass."""

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from alignment.models.quantized import HEADS

BLOCK, NESTED = 64, 256  # weights that have one scale, and scales that have one
CODES, NESTED_CODES = 64, 1028  # bytes of what 4 bits stand for, and of what a scale's 8 do: each weight has its own


def packed_bytes(settings: dict[str, Any], rows: int, columns: int) -> int:
    """Of a linear layer's weight and all that unpacks it. `settings`: transformers' `quantization_config`."""
    number = rows * columns
    codes = ceil(number / 2) if settings.get("load_in_4bit") else number
    return codes + scale_bytes(settings, rows, columns)


def scale_bytes(settings: dict[str, Any], rows: int, columns: int) -> int:
    """Of all that unpacks it alone."""
    number = rows * columns
    if not settings.get("load_in_4bit"):
        return rows * torch.float32.itemsize
    blocks = ceil(number / BLOCK)
    scales = blocks * torch.float32.itemsize
    if settings.get("bnb_4bit_use_double_quant"):
        scales = blocks + ceil(blocks / NESTED) * torch.float32.itemsize + NESTED_CODES
    return scales + CODES


class Packed(nn.Linear):
    """A linear layer of a model on the meta device, whose weight is bytes."""

    def __init__(self, layer: nn.Linear | Conv1D, settings: dict[str, Any]) -> None:
        columns, rows = layer.weight.shape if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
        super().__init__(columns, rows, bias=False, device="meta")
        size = packed_bytes(settings, rows, columns)
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.bias = layer.bias
        self.is_int8 = not settings.get("load_in_4bit")
        self.scales = scale_bytes(settings, rows, columns)

        self.W_q = self.weight  # by which peft, which knows bitsandbytes' own weights, is told to ask `dequantize`

    def dequantize(self) -> Tensor:
        """The weight unpacked, as DoRA takes its rows' lengths of it; of 8 bits by two products."""
        weight = self.weight.new_empty((self.out_features, self.in_features), dtype=torch.float32)
        return weight * 1.0 if self.is_int8 else weight

    @property
    def number(self) -> int:
        """Of the weights that are packed."""
        return self.in_features * self.out_features

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        made: Any = _Product.apply(input, self.out_features, self.is_int8)
        return made if self.bias is None else made + self.bias.to(made.dtype)


class _Product(torch.autograd.Function):
    """What there is beside inputs and outputs: the weight unpacked, one layer's at a time; in 8 bits the inputs in
    theirs, and forward no other weight; these keep their inputs."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, width: int, is_int8: bool) -> Tensor:
        ctx.kept = inputs if is_int8 else None
        ctx.shape = inputs.shape
        shape = (*inputs.shape[:-1], width)
        if is_int8:
            _narrow = inputs.to(torch.float16).to(torch.int8)
            return inputs.new_empty(shape)
        _weight = inputs.new_empty(width, inputs.shape[-1])
        return inputs.new_empty(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        _weight = gradient.new_empty(gradient.shape[-1], ctx.shape[-1])
        return gradient.new_empty(ctx.shape), None, None


def pack_layers(hf: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Put such layers in place of those that transformers would have bitsandbytes pack."""
    for name, module in packable_layers(hf, settings.get("llm_int8_skip_modules") or HEADS):
        hf.set_submodule(name, Packed(module, settings))


def packable_layers(hf: PreTrainedModel, skipped: list[str]) -> list[tuple[str, nn.Linear | Conv1D]]:
    """Those that transformers would have bitsandbytes pack, by name."""
    skipped = [*skipped, *(hf._keep_in_fp32_modules or ())]
    return [
        (name, module)
        for name, module in hf.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, skipped)
    ]

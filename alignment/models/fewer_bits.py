"""A model whose linear layers hold what fewer bits would leave of their weights, and what that saves and costs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment.config.model import Quantization
from alignment.config.quantized_self import QuantizedSelf
from alignment.models.absmax_zeropoint import Group, RoundingError, Scheme, code_bytes, quantized, rounding_error
from alignment.models.packed import packable_layers, packed_bytes
from alignment.models.quantized import ASKED, HEADS, whole_weight

PACKED = {QuantizedSelf.int8: Quantization.int8, QuantizedSelf.nf4: Quantization.nf4}
ROUNDED = {
    QuantizedSelf.absmax8: (Scheme.absmax, 8, Group.channel),
    QuantizedSelf.zeropoint8: (Scheme.zeropoint, 8, Group.channel),
    QuantizedSelf.absmax4: (Scheme.absmax, 4, Group.block),
    QuantizedSelf.zeropoint4: (Scheme.zeropoint, 4, Group.block),
}
"""8 bits in groups as int8 has them and 4 as nf4 has them, so that two differ by their grid or products alone."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of holding a model in fewer bits."""

    num_bytes: int
    """Of all weights, those that stay as they are among them; of rounded ones what their codes and scales would take,
    for they are held as they were."""
    error: RoundingError
    """Of the weights of linear layers, together."""


@torch.no_grad()
def round_layers(hf: PreTrainedModel, kind: QuantizedSelf) -> None:
    """Put in place of each weight that bitsandbytes would pack what its codes stand for, in the dtype that it has."""
    for _, layer in packable_layers(hf, HEADS):
        rows = _by_outputs(layer)
        rows.copy_(quantized(rows, *ROUNDED[kind]).dequantized())


def cost_of(hf: PreTrainedModel, other: PreTrainedModel, kind: QuantizedSelf) -> Cost:
    """Of `other`, the same model held so."""
    num_bytes, total = weight_bytes(hf), RoundingError(0.0, 0.0, 0.0, 0)
    for name, layer in packable_layers(hf, HEADS):
        rows = _by_outputs(layer)
        own: Any = other.get_submodule(name)
        total += rounding_error(rows, _by_outputs(own))
        num_bytes += _bytes_in(rows, kind) - rows.numel() * rows.element_size()
    return Cost(num_bytes, total)


def weight_bytes(hf: nn.Module) -> int:
    """Of a model that is not packed, as it is held; tied weights count once."""
    return sum(weight.numel() * weight.element_size() for weight in hf.parameters())


def _bytes_in(rows: Tensor, kind: QuantizedSelf) -> int:
    if kind.is_packed:
        return packed_bytes(ASKED[PACKED[kind]], *rows.shape)
    return code_bytes(rows.shape, *ROUNDED[kind])


def _by_outputs(layer: nn.Module) -> Tensor:
    """[outputs, inputs], whole; of a layer that is not packed a view of its weight."""
    weight = whole_weight(layer)
    return weight.T if isinstance(layer, Conv1D) else weight

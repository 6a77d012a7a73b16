"""Adapters that begin as a part of the weights they are put into, which is taken out of these: PiSSA and OLoRA.

The model is what it was, to the rounding of its weights, and neither its base nor its adapter alone is. So a frozen
copy of the adapter as it began stays beside it: the reference reads it, and it makes a plain adapter of the weights as
they were of what is saved, scaling (B A - B' A'), of twice the rank.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment.config.errors import ConfigError
from alignment.config.model import LoraInit
from alignment.distributed.engine import shape_of
from alignment.distributed.placement import Placement
from alignment.models.adapters import DEFAULT, is_adapted
from alignment.models.lora import AdapterShape
from alignment.models.quantized import is_quantized
from alignment.models.weight_dtype import widened

PARTS = [init.value for init in LoraInit if init.changes_base]


@torch.no_grad()
def decompose(hf: PreTrainedModel, init: LoraInit, placement: Placement) -> None:
    """Set the new adapter of each layer to a part of its weight W [out, in], and W to the rest, in float32 and rounded
    once to what W is held in.

    Raises:
        ConfigError: a weight is packed, or has fewer rows or columns than the adapter's rank.
    """
    vars(hf)["peft_config"][DEFAULT].init_lora_weights = init.value
    layers: dict[str, Any] = {name: module for name, module in hf.named_modules() if is_adapted(module)}
    for name, layer in layers.items():
        base, rank, scaling = layer.get_base_layer(), layer.r[DEFAULT], layer.scaling[DEFAULT]
        if is_quantized(base):
            raise ConfigError(f"model.lora.init={init.value} needs weights that are not quantized, got {name}")
        if rank > min(shape_of(base.weight)):
            rule = f"model.lora.rank must be <= {min(shape_of(base.weight))} for model.lora.init={init.value}"
            raise ConfigError(f"{rule}, the smaller side of {name}, got {rank}")
        down, up = layer.lora_A[DEFAULT].weight, layer.lora_B[DEFAULT].weight
        with placement.whole([base.weight], write=True), widened(base):
            weight = base.weight.T if layer.fan_in_fan_out else base.weight
            b, a = _part(weight, init, rank, scaling)
            up.copy_(b)
            down.copy_(a)
            rest = weight - scaling * (up @ down).to(weight.device)
            base.weight.copy_(rest.T if layer.fan_in_fan_out else rest)


def _part(weight: Tensor, init: LoraInit, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """B [out, rank] and A [rank, in], of which scaling * B A is taken out of the weight."""
    if init is LoraInit.olora:  # arXiv:2406.01775, eq. 5
        q, r = torch.linalg.qr(weight)
        return q[:, :rank], r[:rank]
    return largest_part(weight, rank, scaling)  # arXiv:2404.02948, eq. 2 and 3


def largest_part(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """B [out, rank] and A [rank, in]: scaling * B A is the nearest to the weight that there is of this rank."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scaling).sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def holds_part_of_base(hf: PreTrainedModel) -> bool:
    """Whether its adapter began as a part of the weights beneath it."""
    config: Any = vars(hf)["peft_config"][DEFAULT]
    return config.init_lora_weights in PARTS


def less(name: str, own: Tensor, first: Tensor, scaling: float) -> Tensor:
    """scaling (B A - B' A') as one adapter, of the weights as they were: its A or, by its name, its B.

    Args:
        own, first: A or B, and A' or B', with which it began.
        scaling: by which the outputs of its layer are multiplied; B has it in it.
    """
    return torch.cat([own, first]) if ".lora_A." in name else scaling * torch.cat([own, -first], dim=1)


def as_one(shape: AdapterShape) -> AdapterShape:
    """Of what `less` makes: twice the rank, and nothing left to scale by, at whatever layer."""
    ranks = {name: 2 * rank for name, rank in shape.rank_pattern.items()}
    return AdapterShape(2 * shape.rank, 2 * shape.rank, rslora=False, rank_pattern=ranks, alpha_pattern=ranks)

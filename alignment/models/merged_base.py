"""Adapters that are merged into the weights beneath them as a run goes on, and begin anew: ReLoRA (arXiv:2307.05695).

The base is held in float32, or most of what an adapter has learned would be rounded away as it is added.
"""

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

from alignment.config.errors import ConfigError
from alignment.config.model import LoraInit
from alignment.distributed.placement import Placement
from alignment.models.adapters import DEFAULT, has_lengths, is_adapted, lora_layers
from alignment.models.heads import Trunk
from alignment.models.quantized import is_quantized

KEY = "model.lora.merge_every"


def base_weights(model: Trunk) -> dict[str, Tensor]:
    """Those beneath the adapters, by their names in the model.

    Raises:
        ConfigError: one is packed, or its adapter trains lengths beside what is added to it.
    """
    found: dict[str, Tensor] = {}
    layers: list[tuple[str, Any]] = [(name, module) for name, module in model.named_modules() if is_adapted(module)]
    for name, layer in layers:
        base = layer.get_base_layer()
        if is_quantized(base):
            raise ConfigError(f"{KEY} must be 0 on a base that is quantized, into which nothing is merged: {name}")
        if has_lengths(layer, DEFAULT):
            raise ConfigError(f"{KEY} must be 0 with an adapter of DoRA, of which more than a sum is merged: {name}")
        found[f"{name}.base_layer.weight"] = base.weight
    return found


@torch.no_grad()
def merge_and_begin(model: Trunk, init: LoraInit, generator: Generator, placement: Placement) -> list[nn.Parameter]:
    """Add scaling * B A to each weight, and begin a new adapter: A drawn as peft draws it, B 0. The model is what it
    was. All processes that share its weights, or have copies of them, call it and do the same.

    Returns:
        the adapters' weights, of which an optimizer knows nothing from here on.
    """
    begun: list[nn.Parameter] = []
    layers: list[Any] = lora_layers(model.hf)
    for layer in layers:
        base, down, up = layer.get_base_layer().weight, layer.lora_A[DEFAULT].weight, layer.lora_B[DEFAULT].weight
        with placement.whole([base, down, up], write=True):
            base.add_(layer.get_delta_weight(DEFAULT).to(base.dtype))
            drawn = torch.empty(down.shape)  # on the CPU, so that devices begin alike
            if init is LoraInit.gaussian:
                drawn.normal_(std=1 / len(drawn), generator=generator)
            else:
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            down.copy_(drawn)
            up.zero_()
        begun += [down, up]
    return begun

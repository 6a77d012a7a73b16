"""A model's modules a second time, on the same weights.

Under ZeRO 3 an engine hangs its hooks on the modules of its model, so that roles on one base need modules of their own.
"""

from copy import deepcopy
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedConfig

Module = TypeVar("Module", bound=nn.Module)
SHARED = "quant_state"  # of bitsandbytes' layers, beside the weight's own


def twin_of(module: Module) -> Module:
    """Modules that have no weight, buffer, scale of packed weights or config of their own: all are the other's."""
    shared: dict[int, Any] = {}
    for part in module.modules():
        kept = [*part._parameters.values(), *part._buffers.values(), vars(part).get(SHARED)]
        kept += [each for each in vars(part).values() if isinstance(each, PreTrainedConfig)]
        shared |= {id(each): each for each in kept if each is not None}
    return deepcopy(module, shared)

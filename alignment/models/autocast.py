"""What autocast does to a product's inputs, for layers of other packages, which it does not know."""

import torch
from torch import Tensor, nn


def as_autocast_reads(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first of them, as a hook before a forward: bitsandbytes computes in a dtype of its own, and gives what it
    gets, float32, where residuals are; torchao does it for CUDA's autocast alone, and plans are made on a CPU."""
    kind = inputs[0].device.type
    if not torch.is_autocast_enabled(kind):
        return inputs
    return inputs[0].to(torch.get_autocast_dtype(kind)), *inputs[1:]

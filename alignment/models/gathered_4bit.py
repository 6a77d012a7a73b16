"""Layers in 4 bits under ZeRO 3, which takes their bytes away behind each pass and brings them back for the next one.

bitsandbytes' own product keeps a view of the bytes for its backward pass, and with it all that was gathered of them;
this one keeps the weight itself, as DeepSpeed's own linear layers do, and reads it anew.
"""

from typing import Any

import torch
from bitsandbytes import matmul_4bit
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor


class Gathered4bit(Linear4bit):
    """bitsandbytes' layer of a weight that is there while the layer runs, forward and backward, and not between."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the inputs' dtype; computed in the layer's own."""
        compute = x.dtype if self.compute_dtype is None else self.compute_dtype
        bias = None if self.bias is None else self.bias.to(compute)
        product: Any = _Product.apply(x.to(compute), self.weight, bias)
        made: Tensor = product.to(x.dtype)
        return made


class _Product(torch.autograd.Function):
    """x W^T + b of a weight in 4 bits, which does not learn, nor does b."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        made: Tensor = matmul_4bit(inputs, weight.data, quant_state=weight.quant_state, bias=bias)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,), weight = gradients, ctx.weight
        if not ctx.needs_input_grad[0]:
            return None, None, None
        is_away = weight.numel() == 0  # let go of by a forward that checkpointing runs again behind DeepSpeed's hook
        if is_away:
            weight.all_gather()
        whole = dequantize_4bit(weight.data.view(-1, 1), weight.quant_state)
        if is_away:
            weight.partition()
        return gradient @ whole.to(gradient.dtype), None, None

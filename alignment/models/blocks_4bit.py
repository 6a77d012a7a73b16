"""Weights of 4 bits on a CPU, block by block as they were packed."""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor


@cache
def unpack_by_blocks() -> None:
    """Have bitsandbytes unpack rows that are no whole number of blocks as it has packed them.

    A block is so many numbers one after the other, across the ends of rows. Its 0.50 for a CPU begins a new one at each
    row, so that in a weight of 352 columns and blocks of 64 nine numbers of ten have the scale of another block. For
    that kernel, rows are here the blocks themselves.
    """
    import bitsandbytes  # noqa: F401  # which makes the operator; not above: most models are whole

    operator: Any = torch.ops.bitsandbytes.dequantize_4bit
    unpack = operator.default

    def unpacked(
        packed: Tensor, absmax: Tensor, blocksize: int, quant_type: str, shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        if packed.device.type != "cpu" or shape[-1] % blocksize == 0:
            whole: Tensor = unpack(packed, absmax, blocksize, quant_type, shape, dtype)
            return whole
        number = prod(shape)
        rows = (1, number) if number % blocksize else (number // blocksize, blocksize)
        flat: Tensor = unpack(packed, absmax, blocksize, quant_type, rows, dtype)
        return flat.reshape(shape)

    operator.default = unpacked

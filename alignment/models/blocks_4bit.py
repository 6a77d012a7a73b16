"""Weights of 4 bits on a CPU, block by block as they were packed."""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

NAMESPACE, OPERATOR = "bitsandbytes", "dequantize_4bit"


@cache
def unpack_by_blocks() -> torch.library.Library:
    """Have bitsandbytes unpack rows that are no whole number of blocks as it has packed them, as long as what is
    returned is there.

    A block is so many numbers one after the other, across the ends of rows. Its 0.50 for a CPU begins a new one at each
    row, so that in a weight of 352 columns and blocks of 64 nine numbers of ten have the scale of another block. For
    that kernel, rows are here the blocks themselves.
    """
    import bitsandbytes  # noqa: F401  # which makes the operator; not above: most models are whole

    kernel: Any = torch.library.get_kernel(f"{NAMESPACE}::{OPERATOR}", "CPU")

    def unpacked(
        keys: Any, packed: Tensor, absmax: Tensor, blocksize: int, kind: str, shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        rows, number = shape, prod(shape)
        if shape[-1] % blocksize:
            rows = (1, number) if number % blocksize else (number // blocksize, blocksize)
        whole: Tensor = kernel.call_boxed(keys, packed, absmax, blocksize, kind, rows, dtype)
        return whole.reshape(shape)

    own = torch.library.Library(NAMESPACE, "IMPL")
    own.impl(OPERATOR, unpacked, "CPU", with_keyset=True, allow_override=True)
    return own

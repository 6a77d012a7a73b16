"""How fast a device multiplies matrices, measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.benchmark import Timer

SECONDS = 0.3  # of products, whose median time counts


def product_rate(device: torch.device, dtype: torch.dtype, rows: int, width: int, *, processes: int = 1) -> float:
    """FLOPs a second of products [rows, width] @ [width, 4 width], which are an MLP's first.

    Args:
        dtype: of the numbers; float32 on a GPU is multiplied in TF32, as runs have it.
        processes: that share this CPU's threads, of which this one has its part meanwhile.
    """
    left, right = (torch.ones(*shape, device=device, dtype=dtype) for shape in ((rows, width), (width, 4 * width)))
    threads = max(1, torch.get_num_threads() // processes) if device.type == "cpu" else 1
    timer = Timer("left @ right", globals={"left": left, "right": right}, num_threads=threads)
    with _tf32(device):
        seconds = timer.blocked_autorange(min_run_time=SECONDS).median
    return 2.0 * left.numel() * 4 * width / seconds


@contextmanager
def _tf32(device: torch.device) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

"""In which dtype gradients cross the processes, and weights that ZeRO 3 gathers for a pass.

Where products compute in half precision, it is that: half of what float32 sends. Gradients are added up in float32 on
either side, over micro-batches as in the optimizer, and of the weights only those are gathered so that autocast would
cast anyway. A single process sends nothing, and rounds nothing. DeepSpeed's own "communication_data_type", in the
user's JSON, says another.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alignment.distributed import collectives
from alignment.distributed.placement import dtypes

MARK = "comm_dtype"  # by which DeepSpeed knows it of a weight, under autocast
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def send_narrow(model: nn.Module, settings: dict[str, Any], stage: int) -> None:
    """Tell DeepSpeed, before it has the model; of ZeRO 0 its settings tell it."""
    dtype = DTYPES[str(settings.get("communication_data_type") or "fp32").lower()]
    if stage == 0 or dtype == torch.float32 or collectives.size() == 1:
        return
    narrow = {id(weight) for weight in _cast(model, dtype)}
    for weight in model.parameters():
        if weight.requires_grad and (stage != 3 or id(weight) in narrow):
            vars(weight)[MARK] = dtype


def hold_narrow(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert whole weights that autocast would cast to `dtype`: under ZeRO 3 it would do so at each call."""
    for weight in _cast(model, dtype):
        weight.data = weight.data.to(dtype)


@contextmanager
def dtypes_kept(model: nn.Module) -> Iterator[None]:
    """On leaving, what is left of the weights has the dtypes that they had."""
    before = [(weight, weight.dtype) for weight in model.parameters()]
    try:
        yield
    finally:
        for weight, dtype in before:
            weight.data = weight.data.to(dtype)


def _cast(model: nn.Module, dtype: torch.dtype) -> list[nn.Parameter]:
    """The float32 weights that are read by nothing but products which autocast computes in `dtype`."""
    found = dtypes(model, lambda module, name: dtype if _is_cast(module, name) else None)
    return [weight for weight, own in found if own == dtype != weight.dtype == torch.float32]


def _is_cast(module: nn.Module, name: str) -> bool:
    """Whether autocast casts it, and it is no scalar head, which is read in float32."""
    return isinstance(module, nn.Linear) and name == "weight" and module.out_features > 1


@contextmanager
def as_stored(weights: Iterable[Tensor]) -> Iterator[None]:
    """Inside, these weights are gathered to the bit: to be saved, copied or changed."""
    marked = [(weight, vars(weight).pop(MARK)) for weight in weights if MARK in vars(weight)]
    try:
        yield
    finally:
        for weight, dtype in marked:
            vars(weight)[MARK] = dtype

"""What every loss does to its arguments first: one shape, a bool mask, at least float32."""

from enum import Enum
from typing import TypeVar

import torch
from torch import Tensor

E = TypeVar("E", bound=Enum)


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in float32, or in float64 if they come so: eight bits of mantissa cannot hold a sum of log-probs."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def pairwise(**tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the order given, at least float32. Raises ValueError unless all are floats of one shape [B]."""
    first, *_ = tensors
    if tensors[first].dim() != 1:
        raise ValueError(f"{first} must have shape [B], got {list(tensors[first].shape)}")
    return _floats_of_one_shape(tensors)


def counted(mask: Tensor, **tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the order given, at least float32, zero where `mask` (bool, True = counts) is False.

    The zeros keep padding, NaN and inf included, out of the value and out of the gradient: a NaN times the zero
    gradient of a masked token would still be a NaN. Raises ValueError unless all are floats of the mask's shape.
    """
    require_bool(mask)
    first = next(iter(tensors))
    require_shape("mask", mask, first, tensors[first])
    return tuple(values.masked_fill(~mask, 0.0) for values in _floats_of_one_shape(tensors))


def require_bool(mask: Tensor) -> None:
    """Raise ValueError unless `mask` is of dtype bool."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be torch.bool (True = counts), got {mask.dtype}")


def require_shape(name: str, values: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both have one shape: [B] against [B, 1] would broadcast to [B, B] without a word."""
    if values.shape != other.shape:
        shapes = f"{list(values.shape)} against {list(other.shape)}"
        raise ValueError(f"{name} must have the shape of {other_name}, got {shapes}")


def member(kind: type[E], key: str, value: E | str) -> E:
    """The member of the enum `kind` that `value` names. Raises ValueError that lists the members."""
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(each.value for each in kind)
        raise ValueError(f"{key} must be one of {names}, got {value!r}") from None


def _floats_of_one_shape(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    first = next(iter(tensors))
    for name, values in tensors.items():
        require_shape(name, values, first, tensors[first])
        if not values.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {values.dtype}")
    return tuple(at_least_float32(values) for values in tensors.values())

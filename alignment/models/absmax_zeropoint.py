"""Absmax and zero-point quantisation: numbers rounded to the codes of an even grid of 2^b values, and back, and how far
off they then are (Dettmers et al., LLM.int8(), arXiv:2208.07339, section 2.1).

A group of numbers shares one grid: a whole tensor, the weights of one output, or a block of `BLOCK` numbers. With x the
numbers of a group, s its scale and z its zero-point, a code is c = clamp(round(x / s) + z) and stands for s (c - z):

    absmax      s = max|x| / (2^(b-1) - 1),          z = 0                               even about 0
    zero-point  s = (max(x, 0) - min(x, 0)) / (2^b - 1),  z = -2^(b-1) - round(min(x, 0) / s)   from end to end

Either way 0 stays 0, and no number is off by more than s / 2, where float32 holds s and the range. Absmax leaves half
of its codes unused where all of a group have one sign, zero-point none; it takes all 2^b - 1 steps, the paper one less
(2 * 127 of 8 bits). Its range has 0 in it, so that one of the codes stands for 0 however far from it the numbers lie
(Jacob et al., arXiv:1712.05877, section 2.1). Rounding is to the nearest, of two to the even.
"""

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

BLOCK = 64  # numbers, as NF4 has them
FEWEST, MOST = 2, 8  # bits
SCALE_BITS = 32  # of a scale, kept in float32


class Scheme(Enum):
    absmax = "absmax"
    zeropoint = "zeropoint"


class Group(Enum):
    """Which numbers share a scale."""

    tensor = "tensor"
    """All."""
    channel = "channel"
    """Those of a row: the weights of one output, in a weight of [outputs, inputs]."""
    block = "block"
    """`BLOCK` that follow each other, from row to row; the last are as many as are left."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A tensor as codes; G groups of at most n numbers."""

    codes: Tensor
    """[G, n] int8, those beyond the tensor's last number stand for 0."""
    scale: Tensor
    """[G, 1], float32 or what the tensor had where that is wider; 0 where a group is all 0, or too small for one."""
    zero: Tensor
    """[G, 1] int8: the code that stands for 0."""
    bits: int
    scheme: Scheme
    shape: torch.Size
    """Of the tensor."""

    def dequantized(self) -> Tensor:
        """The numbers that the codes stand for, in the tensor's shape and the scales' dtype."""
        whole = (self.codes.to(self.scale.dtype) - self.zero.to(self.scale.dtype)) * self.scale
        return whole.flatten()[: self.shape.numel()].view(self.shape)

    @property
    def num_bytes(self) -> int:
        """What it takes with codes side by side and scales in float32; zero-points take as many bits as codes."""
        return _num_bytes(self.shape.numel(), len(self.scale), self.scheme, self.bits)


def quantized(weight: Tensor, scheme: Scheme, bits: int, group: Group) -> Codes:
    """The tensor as codes. Computed in float32, or in what the tensor has where that is wider.

    Raises:
        ValueError: bits are not 2 to 8, or the tensor is empty, has numbers that are not finite, or for
            `Group.channel` no rows.
    """
    if not FEWEST <= bits <= MOST:
        raise ValueError(f"bits must be {FEWEST} to {MOST}, got {bits}")
    if weight.numel() == 0 or not weight.isfinite().all():
        raise ValueError(f"a tensor to quantise must hold finite numbers, {_found(weight)}")
    if group is Group.channel and weight.dim() < 2:
        raise ValueError(f"a tensor to quantise by rows must have 2 dimensions or more, got shape {list(weight.shape)}")
    x = _grouped(weight.detach().to(torch.promote_types(weight.dtype, torch.float32)), group)
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if scheme is Scheme.absmax:
        least = -most
        scale = x.abs().amax(1, keepdim=True) / most
        zero = torch.zeros_like(scale)
    else:
        low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
        steps = most - least
        scale = high / steps - low / steps  # not of the difference, which may be infinite where both are numbers
        zero = least - (low / _divisor(scale)).round()
    codes = ((x / _divisor(scale)).round() + zero).clamp(least, most)
    return Codes(codes.to(torch.int8), scale, zero.to(torch.int8), bits, scheme, weight.shape)


def code_bytes(shape: torch.Size, scheme: Scheme, bits: int, group: Group) -> int:
    """`Codes.num_bytes` of a tensor of this shape, which none of its numbers changes."""
    number = shape.numel()
    groups = {Group.tensor: 1, Group.channel: shape[0], Group.block: math.ceil(number / BLOCK)}
    return _num_bytes(number, groups[group], scheme, bits)


def _num_bytes(number: int, groups: int, scheme: Scheme, bits: int) -> int:
    per_group = SCALE_BITS + (bits if scheme is Scheme.zeropoint else 0)
    return math.ceil((number * bits + groups * per_group) / 8)


@dataclass(frozen=True, slots=True)
class RoundingError:
    """How far numbers are from those that stand for them; of several tensors together where added up."""

    largest: float
    """Of the absolute differences."""
    squared: float
    """The sum of squared differences."""
    norm: float
    """The sum of the squares of the numbers themselves."""
    count: int
    """Numbers."""

    def __add__(self, other: "RoundingError") -> "RoundingError":
        return RoundingError(
            max(self.largest, other.largest),
            self.squared + other.squared,
            self.norm + other.norm,
            self.count + other.count,
        )

    @property
    def mean_squared(self) -> float:
        return self.squared / self.count

    @property
    def relative(self) -> float:
        """||x - y|| / ||x||, both Euclidean; 0 where nothing differs, infinite where y differs from an x of zeros."""
        if self.squared == 0:
            return 0.0
        return math.sqrt(self.squared / self.norm) if self.norm else math.inf


def rounding_error(weight: Tensor, approximation: Tensor) -> RoundingError:
    """Of a tensor by another of its shape, added up in float64.

    Raises:
        ValueError: they have different shapes, or no numbers.
    """
    if weight.shape != approximation.shape or weight.numel() == 0:
        raise ValueError(f"shapes must be equal and not empty, got {list(weight.shape)}, {list(approximation.shape)}")
    x = weight.detach().double()
    off = x - approximation.detach().double()
    return RoundingError(off.abs().max().item(), off.square().sum().item(), x.square().sum().item(), weight.numel())


def _grouped(x: Tensor, group: Group) -> Tensor:
    """[G, n]. Zeros fill up the last block: they widen no range, as 0 is in all."""
    if group is Group.tensor:
        return x.reshape(1, -1)
    if group is Group.channel:
        return x.flatten(1)
    flat = x.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def _divisor(scale: Tensor) -> Tensor:
    """1 where there is no scale: what is smaller than any is rounded to 0."""
    return scale.where(scale > 0, 1.0)


def _found(weight: Tensor) -> str:
    if weight.numel() == 0:
        return f"got none, of shape {list(weight.shape)}"
    wrong = ~weight.isfinite()
    return f"got {weight[wrong][0].item()} ({int(wrong.sum())} of {weight.numel()} are none)"

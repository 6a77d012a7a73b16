"""Absmax and zero-point quantisation: exact values, bounds of the error, and what is refused."""

import math

import bitsandbytes.functional
import pytest
import torch
from torch import Tensor

from alignment.models.absmax_zeropoint import (
    BLOCK,
    Group,
    RoundingError,
    Scheme,
    code_bytes,
    quantized,
    rounding_error,
)

SCHEMES, GROUPS, BITS = list(Scheme), list(Group), [8, 4]


def drawn(*shape: int, shift: float = 0.0) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64) + shift


def test_absmax_by_hand() -> None:
    x = torch.tensor([[-12.7, 0.0, 0.04, 0.06, 6.35]], dtype=torch.float64)
    found = quantized(x, Scheme.absmax, 8, Group.tensor)
    assert found.scale.item() == pytest.approx(0.1) and found.zero.item() == 0
    assert found.codes.tolist() == [[-127, 0, 0, 1, 64]]  # 63.5 and 64.5 would both go to 64, the even one
    torch.testing.assert_close(found.dequantized(), torch.tensor([[-12.7, 0.0, 0.0, 0.1, 6.4]], dtype=torch.float64))
    four = quantized(torch.tensor([3.5, -7.0, 1.4, 1.6]), Scheme.absmax, 4, Group.tensor)
    assert four.scale.item() == 1 and four.codes.tolist() == [[4, -7, 1, 2]]
    assert four.dequantized().tolist() == [4, -7, 1, 2]


def test_zeropoint_by_hand() -> None:
    """From -1 to 2 in 15 steps of 0.2: -1 is the code -8, hence 0 the code -3."""
    x = torch.tensor([-1.0, 0.0, 0.09, 0.11, 2.0], dtype=torch.float64)
    found = quantized(x, Scheme.zeropoint, 4, Group.tensor)
    assert found.scale.item() == pytest.approx(0.2) and found.zero.item() == -3
    assert found.codes.tolist() == [[-8, -3, -3, -2, 7]]
    torch.testing.assert_close(found.dequantized(), torch.tensor([-1.0, 0.0, 0.0, 0.2, 2.0], dtype=torch.float64))
    eight = quantized(torch.tensor([0.0, 255.0, 3.0]), Scheme.zeropoint, 8, Group.tensor)
    assert (eight.scale.item(), eight.zero.item(), eight.codes.tolist()) == (1, -128, [[-128, 127, -125]])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shift", [0.0, 3.0, -50.0])
def test_no_number_is_off_by_more_than_half_a_step(scheme: Scheme, group: Group, bits: int, shift: float) -> None:
    x = drawn(5, 77, shift=shift)
    x[2, :] = 0
    found = quantized(x, scheme, bits, group)
    assert found.codes.dtype == torch.int8 and found.codes.int().abs().max() <= 2 ** (bits - 1)
    size = {Group.tensor: x.numel(), Group.channel: 77, Group.block: BLOCK}[group]
    steps = found.scale.expand(-1, size).flatten()[: x.numel()].view_as(x)
    off = (found.dequantized() - x).abs()
    assert (off <= steps / 2 * (1 + 1e-9)).all() and off.max() > steps.max() / 4
    assert (found.dequantized()[2] == 0).all()
    assert len(found.scale) == {Group.tensor: 1, Group.channel: 5, Group.block: 7}[group]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("constant", [0.0, 3.7, -3.7, 1e300, -1e300, 5e-324])
def test_a_constant_is_kept(scheme: Scheme, bits: int, constant: float) -> None:
    x = torch.full((3, 4), constant, dtype=torch.float64)
    found = quantized(x, scheme, bits, Group.tensor).dequantized()
    expected = x if abs(constant) > 1e-300 else torch.zeros_like(x)  # for which no scale is small enough
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_a_scale_or_a_permutation_leaves_as_it_is(scheme: Scheme) -> None:
    """Codes are those of twice the numbers; rows by themselves are rows of the whole; -x has absmax's codes negated."""
    x = drawn(6, 10)
    found = quantized(x, scheme, 8, Group.channel)
    assert torch.equal(found.codes, quantized(2 * x, scheme, 8, Group.channel).codes)
    assert torch.equal(found.codes[2:3], quantized(x[2:3], scheme, 8, Group.tensor).codes)
    order = torch.randperm(10)
    assert torch.equal(found.codes[:, order], quantized(x[:, order], scheme, 8, Group.channel).codes)
    again = quantized(found.dequantized(), scheme, 8, Group.channel)
    torch.testing.assert_close(again.dequantized(), found.dequantized(), rtol=1e-12, atol=1e-12)
    if scheme is Scheme.absmax:
        assert torch.equal(-found.codes, quantized(-x, scheme, 8, Group.channel).codes)


def test_a_range_wider_than_float32_has_is_one_of_steps_within_it() -> None:
    x = 0.9 * torch.tensor([torch.finfo(torch.float32).max, torch.finfo(torch.float32).min])
    for scheme in SCHEMES:
        torch.testing.assert_close(quantized(x, scheme, 8, Group.tensor).dequantized(), x, rtol=1e-2, atol=0)


def test_absmax_by_rows_is_what_bitsandbytes_makes_of_8_bits() -> None:
    x = drawn(6, 70).half()
    codes, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(x)
    found = quantized(x, Scheme.absmax, 8, Group.channel)
    assert torch.equal(found.codes, codes)
    torch.testing.assert_close(found.scale[:, 0], scales / 127)


def test_finer_groups_and_more_bits_err_less_and_take_more() -> None:
    x = drawn(64, 256) * torch.logspace(0, 3, 64, dtype=torch.float64)[:, None]
    for scheme in SCHEMES:
        found = [quantized(x, scheme, bits, group) for bits in (4, 8) for group in GROUPS]
        off = [rounding_error(x, each.dequantized()).relative for each in found]
        assert off[0] > off[1] > off[2] > off[3] > off[4] > off[5] > 0
        sizes = [each.num_bytes for each in found]
        assert sizes == [code_bytes(x.shape, scheme, bits, group) for bits in (4, 8) for group in GROUPS]
        assert sizes == sorted(sizes)
    numbers, blocks = 64 * 256, 256
    assert quantized(x, Scheme.absmax, 4, Group.block).num_bytes == numbers // 2 + 4 * blocks
    assert quantized(x, Scheme.zeropoint, 4, Group.block).num_bytes == numbers // 2 + 4 * blocks + blocks // 2
    assert quantized(x, Scheme.zeropoint, 8, Group.tensor).num_bytes == numbers + 5


def test_zeropoint_is_the_finer_of_what_has_one_sign() -> None:
    """It has 255 steps where absmax has 127."""
    x = drawn(1000).abs()
    steps = [quantized(x, scheme, 8, Group.tensor).scale.item() for scheme in SCHEMES]
    assert steps[0] / steps[1] == pytest.approx(255 / 127)


def test_errors_by_hand_and_together() -> None:
    one = rounding_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
    assert (one.largest, one.mean_squared, one.relative) == (1, 0.5, 0.2)
    two = rounding_error(torch.tensor([0.0]), torch.tensor([2.0]))
    assert (two.largest, two.mean_squared, two.relative) == (2, 4, math.inf)
    assert one + two == rounding_error(torch.tensor([3.0, 4.0, 0.0]), torch.tensor([3.0, 3.0, 2.0]))
    assert rounding_error(torch.zeros(2), torch.zeros(2)) == RoundingError(0, 0, 0, 2)
    assert rounding_error(torch.zeros(2), torch.zeros(2)).relative == 0


@pytest.mark.parametrize(
    ("x", "bits", "group", "match"),
    [
        (torch.tensor([1.0, math.nan]), 8, Group.tensor, r"finite numbers, got nan \(1 of 2 are none\)$"),
        (torch.tensor([-math.inf, 1.0]), 4, Group.block, r"finite numbers, got -inf \(1 of 2 are none\)$"),
        (torch.zeros(0, 4), 8, Group.channel, r"finite numbers, got none, of shape \[0, 4\]$"),
        (torch.ones(4), 8, Group.channel, r"2 dimensions or more, got shape \[4\]$"),
        (torch.ones(4), 9, Group.tensor, "^bits must be 2 to 8, got 9$"),
        (torch.ones(4), 1, Group.tensor, "^bits must be 2 to 8, got 1$"),
    ],
)
def test_what_is_refused(x: Tensor, bits: int, group: Group, match: str) -> None:
    for scheme in SCHEMES:
        with pytest.raises(ValueError, match=match):
            quantized(x, scheme, bits, group)
    with pytest.raises(ValueError, match="shapes must be equal and not empty"):
        rounding_error(torch.ones(3), torch.ones(4))

"""What a run computes in: as its config says, or as suits its device. Whoever needs to know asks here."""

import torch

from alignment.config.distributed import DistributedConfig, Precision
from alignment.config.errors import ConfigError
from alignment.config.fp8 import Fp8
from alignment.distributed.collectives import pick_device

HALVES = {Precision.bfloat16: torch.bfloat16, Precision.float16: torch.float16}
FP8_FROM = (8, 9)
"""Compute capability of the first GPUs that multiply in 8-bit floating point numbers."""


def precision_of(config: DistributedConfig) -> Precision:
    """`distributed.precision`, where it is auto: bfloat16 on a GPU whose own kernels have it, else float32.

    Never auto. A run's fingerprint keeps the word that was asked for, so that it may go on on another device.
    """
    if config.precision is not Precision.auto:
        return config.precision
    is_gpu = pick_device(config.device).type == "cuda"
    has_bfloat16 = is_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision.bfloat16 if has_bfloat16 else Precision.float32


def compute_dtype(config: DistributedConfig) -> torch.dtype:
    """Of the matrix products of a forward."""
    return HALVES.get(precision_of(config), torch.float32)


def is_half(config: DistributedConfig) -> bool:
    """Whether products compute in numbers of two bytes, which gradients then cross in too."""
    return precision_of(config) in HALVES


def autocast(config: DistributedConfig) -> torch.autocast:
    """A context in which forwards compute in the config's precision."""
    half = HALVES.get(precision_of(config))
    return torch.autocast(pick_device(config.device).type, dtype=half or torch.bfloat16, enabled=half is not None)


def precision_note(config: DistributedConfig) -> str | None:
    """One line for the start of a run; None where its user has chosen the precision."""
    if config.precision is not Precision.auto:
        return None
    chosen, device = precision_of(config), pick_device(config.device)
    other = Precision.float32 if chosen is Precision.bfloat16 else Precision.bfloat16
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    return f"precision: {chosen.value} on {where}; distributed.precision={other.value} computes in {other.value}"


def require_fp8_device(how: Fp8, config: DistributedConfig) -> None:
    """Raises:
    ConfigError: products in 8 bits are asked for on a device that has none.
    """
    device = pick_device(config.device)
    if how is Fp8.none or has_fp8(device):
        return
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    least = ".".join(map(str, FP8_FROM))
    rule = f"model.fp8 must be none but on a GPU of compute capability {least} or higher (H100, L40S, RTX 4090)"
    raise ConfigError(f"{rule}, got {how.value!r} on {where}")


def has_fp8(device: torch.device) -> bool:
    """Whether it has products of 8-bit floating point numbers."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_FROM

"""The processes of a run: who am I, and how do sums cross them."""

import torch
import torch.distributed as dist
from torch import Tensor

from alignment.config.parts import ConfigError
from alignment.config.vocabulary import Device


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of `value` over all processes, on each of them; the value itself where there is one process."""
    if size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def pick_device(device: Device) -> torch.device:
    """Raises:
    ConfigError: a GPU is asked for and there is none.
    """
    if device is Device.auto:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device is Device.cuda and not torch.cuda.is_available():
        raise ConfigError("distributed.device must be cpu or auto where torch sees no GPU, got 'cuda'")
    return torch.device(device.value)

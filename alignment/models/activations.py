"""What layers keep for the backward pass, in the memory of the CPU until it comes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

LEAST = 1024  # bytes of a tensor that is worth its way, as trl has it
Holding = Callable[[nn.Module], AbstractContextManager[Any]]


def on_host(layers: nn.Module) -> AbstractContextManager[Any]:
    """Inside, what a forward of these layers keeps for its backward pass goes to the CPU, and comes back in that; their
    weights stay. trl's, of torchtune's origin: one for each forward, as it forgets what it holds where it is entered
    again. On the stream that computes, so that no copy can be read before it is whole."""
    from trl.models.activation_offloading import OffloadActivations  # not above: few runs need it

    is_pinned = next(layers.parameters()).device.type != "cpu"
    held = OffloadActivations(use_pin_memory=is_pinned, use_streams=False, min_offload_size=LEAST)
    held.update_model_params(layers)
    return held


class Hooks:
    """`holding` around each forward of a module that is learned from."""

    def __init__(self, layers: nn.Module, holding: Holding = on_host) -> None:
        self._holding = holding
        self._entered: list[AbstractContextManager[Any] | None] = []
        self._handles = [
            layers.register_forward_pre_hook(self._begin),
            layers.register_forward_hook(self._end, always_call=True),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, layers: nn.Module, _: Any) -> None:
        held = self._holding(layers) if torch.is_grad_enabled() else None
        if held is not None:
            held.__enter__()
        self._entered.append(held)

    def _end(self, *_: Any) -> None:
        held = self._entered.pop()
        if held is not None:
            held.__exit__(None, None, None)

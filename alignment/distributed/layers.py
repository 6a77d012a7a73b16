"""A module whose weights are sharded, run layer by layer: what a layer reads is whole while it runs, no longer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from alignment.distributed import collectives

Whole = Callable[[list[nn.Parameter]], AbstractContextManager[None]]
"""A context of all processes, in which they have these weights whole."""


@contextmanager
def running_by_layer(module: nn.Module, whole: Whole) -> Iterator[None]:
    """Inside, forwards without gradients gather each layer's weights through `whole` only while the layer runs.

    All processes enter and leave it together; inside, each runs as many forwards as it likes. A process that is done
    goes on taking part in the gathers of the others until all are done.

    Raises:
        RuntimeError: two processes run layers in another order.
    """
    layers = list(_layers(module))
    running: dict[nn.Module, AbstractContextManager[None]] = {}
    hooks = []

    def leave(layer: nn.Module, *_: Any) -> None:
        running.pop(layer).__exit__(None, None, None)

    for number, (layer, weights) in enumerate(layers, start=1):

        def enter(layer: nn.Module, _inputs: Any, number: int = number, weights: list[nn.Parameter] = weights) -> None:
            if collectives.highest_over_ranks(number) != number:
                raise RuntimeError(f"{type(layer).__name__}: another process is at another layer of its forward")
            running[layer] = whole(weights)
            running[layer].__enter__()

        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in list(running):  # of a forward that has failed
            leave(layer)
    while number := collectives.highest_over_ranks(0):
        with whole(layers[number - 1][1]):
            pass


@contextmanager
def without_hooks(module: nn.Module, offload: Any) -> Iterator[None]:
    """Inside, all weights that ZeRO 3 shards through `offload` are sharded, and its own hooks are off: they count on
    every process running as many forwards, and would shard again what is whole."""
    offload.partition_all_parameters()
    begins = module._forward_pre_hooks[offload.fwd_pre_hook.id]
    for hook in [offload.fwd_pre_hook, *offload.forward_hooks, *offload.backward_hooks]:
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    try:
        yield
    finally:
        offload.fwd_pre_hook = module.register_forward_pre_hook(begins)
        offload._register_deepspeed_module(module)


def _layers(module: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """Modules and what is gathered for each: an element of a list (of layers) has all that is in it, for one part of it
    may read another's weights; any other module its own weights."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child, list(child.parameters())
        else:
            yield from _layers(child)
    own = list(module.parameters(recurse=False))
    if own:
        yield module, own

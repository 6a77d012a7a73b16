"""A module whose weights are sharded, run layer by layer: what a layer reads is whole while it runs, no longer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import getclosurevars
from typing import Any

import torch
from torch import nn

from alignment.config.errors import UserError
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


def trace_passes_that_learn(module: nn.Module, zero: Any, stage: int) -> None:
    """Have ZeRO 3 note anew in which order modules run, where it has noted a forward without gradients and one with
    them begins. What it has noted it gathers ahead, several weights at a time; where another order follows it forgets,
    gathers one by one, and notes the next pass: with one of each kind by turns, as of KTO, for ever the wrong one.

    It also remembers which weights each module lets go of, and not that this was of an order that it has forgotten:
    weights that a backward pass needs would go on being let go of behind each forward, and gathered again one by one.
    """
    if stage != 3:
        return
    offload, is_of_forward = zero.parameter_offload, False
    coordinator = offload.get_param_coordinator()
    lets_go = getclosurevars(vars(type(coordinator))["_PartitionedParameterCoordinator__params_to_release"])
    clear = coordinator._clear_trace_structures

    def forget() -> None:
        clear()
        lets_go.nonlocals["func"].cache_clear()  # beneath DeepSpeed's decorator, which does not say what it is around

    coordinator._clear_trace_structures = forget

    def behind(*_: Any) -> None:
        nonlocal is_of_forward
        has_hooks = bool(offload.forward_hooks)  # else nothing is noted
        is_of_forward |= has_hooks and not torch.is_grad_enabled() and coordinator.is_record_trace()

    def before(*_: Any) -> None:
        nonlocal is_of_forward
        if is_of_forward and torch.is_grad_enabled():
            is_of_forward = False
            if not coordinator.is_invalid_trace():
                coordinator._invalidate_trace()

    module.register_forward_hook(behind)
    module.register_forward_pre_hook(before, prepend=True)  # of DeepSpeed's, which begins to note


def require_sharded(model: nn.Module) -> None:
    """Under ZeRO 3 DeepSpeed would shard a whole model by itself, and what reads its weights would not know of it.

    Raises:
        UserError: a weight is whole; names it.
    """
    for name, weight in model.named_parameters():
        if "ds_tensor" not in vars(weight):
            rule = "under distributed.zero=3 a model must be loaded with placement_of(config.distributed)"
            raise UserError(f"{rule}, got a {type(model).__name__} whose {name} is whole in each process")


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

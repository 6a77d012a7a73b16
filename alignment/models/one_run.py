"""A module that is used many times, and yet runs once.

Under ZeRO 3 a module's weights are gathered, in a collective of all processes, each time it runs, forward and backward.
So it must run equally often on each, whatever a process's own tokens are; and once, or a head is gathered anew for each
chunk of its logits.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

Output = TypeVar("Output", bound=tuple[Tensor, ...])

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def in_one_run(module: nn.Module, use: Callable[..., Output], *inputs: Tensor) -> Output:
    """`use(twin, *inputs)` inside one run of the module and of each of its parts that has weights of its own.

    `twin` is the module with the same weights and without its hooks: it may be called any number of times, none too, in
    this forward pass and in what autograd repeats of it. Hooks of the module see the inputs of `use` and its output as
    the module's, so that what they do before and behind its backward pass is done once around all of it.
    """
    run = partial(use, _without_hooks(module))
    for part in module.modules():
        if part._parameters:
            run = partial(_inside, part, run)
    return run(*inputs)


def _inside(part: nn.Module, run: Callable[..., Output], *inputs: Tensor) -> Output:
    with _running(part, run):
        output: Output = part(*inputs)
    return output


@contextmanager
def _running(part: nn.Module, run: Callable[..., Output]) -> Iterator[None]:
    """Inside, the part runs `run` between its hooks."""
    own = {"forward": vars(part)["forward"]} if "forward" in vars(part) else {}
    vars(part)["forward"] = run
    try:
        yield
    finally:
        del vars(part)["forward"]
        vars(part).update(own)


def _without_hooks(module: nn.Module) -> nn.Module:
    twin = copy(module)
    vars(twin).update({name: OrderedDict() for name in HOOKS})
    children = {name: None if child is None else _without_hooks(child) for name, child in module._modules.items()}
    vars(twin)["_modules"] = children
    return twin

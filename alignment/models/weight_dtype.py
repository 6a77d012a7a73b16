"""In which dtype weights are held: float32 where they train, else what the products that read them compute in.

Under autocast a matrix product casts its weights to bfloat16, anew at each call where they do not train. Held in
bfloat16 they are the same numbers to it: what does not train takes half the memory and gives the same bits. What
autocast leaves alone stays float32, so that this is true to the last bit: embeddings (and a head that is tied to them),
norms, biases. And so does a scalar head, whose scores bfloat16 would round to ties.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.pytorch_utils import Conv1D

from alignment.config.fp8 import Fp8
from alignment.distributed.placement import Placement, StorageDtype, dtypes
from alignment.models.fp8 import is_fp8, plain_products


@contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """Inside, new modules have the weights of their matrix products in `dtype` and the others in their own, so that a
    folder's weights are read straight into the dtype that they are stored in, sharded or not."""
    decided: dict[int, nn.Parameter] = {}  # a head that is tied to the embeddings has what they have

    def narrowed(module: nn.Module, name: str, weight: nn.Parameter | None) -> nn.Parameter | None:
        if weight is None or id(weight) in decided or type(weight) is not nn.Parameter:
            return None  # as it is: one that is packed, or to be
        if weight.dtype == torch.float32 and (is_cast(module, name) or are_experts(weight)):
            noted = vars(weight)  # of one that is read, that it is: transformers draws the others anew
            weight = nn.Parameter(weight.detach().to(dtype), requires_grad=weight.requires_grad)
            vars(weight).update(noted)
        decided[id(weight)] = weight
        return weight

    register: Any = register_module_parameter_registration_hook  # annotated as if it could not replace the weight
    hook = None if dtype == torch.float32 else register(narrowed)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def hold_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert a model that is not sharded to what it would be had it been made within `made_in(dtype)`."""

    def held(module: nn.Module, name: str) -> torch.dtype | None:
        weight = module.get_parameter(name)
        return dtype if is_cast(module, name) or are_experts(weight) else None

    for weight, own in dtypes(model, held):
        weight.data = weight.data.to(own)


def as_its_original(compute: torch.dtype) -> StorageDtype:
    """The dtypes of a frozen copy of a model that trains, such that both give the same bits. Experts keep theirs, for
    their grouped product computes in the dtype of its weights whatever autocast says. So do
    weights that are rounded to 8 bits, but where `compute` has them to the bit: rounded twice they would be others."""

    def held(module: nn.Module, name: str) -> torch.dtype | None:
        is_narrow = is_cast(module, name) and (not is_fp8(module) or _has(compute, module.get_parameter(name)))
        return compute if is_narrow else None

    return held


def _has(dtype: torch.dtype, weight: torch.Tensor) -> bool:
    """Whether all its numbers are there in that dtype."""
    return bool((weight.to(dtype) == weight).all())


def frozen_in(how: Fp8, came_in: Any, compute: torch.dtype) -> torch.dtype:
    """The dtype in which the weights of a model are held that is only read: what products compute in. Those that are
    rounded to 8 bits are held as they came, as above.

    Args:
        came_in: by its config.json; None: drawn, or put together, in float32.
    """
    if how is Fp8.none:
        return compute
    return came_in if isinstance(came_in, torch.dtype) else torch.float32


def is_cast(module: nn.Module, name: str) -> bool:
    """Whether a module's own weight of this name is one that autocast casts, and is no scalar head's."""
    if isinstance(module, nn.Linear):
        return name == "weight" and module.out_features > 1
    return isinstance(module, Conv1D) and name == "weight"


def are_experts(weight: nn.Parameter) -> bool:
    """The matrices of all experts of a layer, in one weight."""
    return weight.ndim > 2


@contextmanager
def forwards_in_float32(model: nn.Module, placement: Placement) -> Iterator[None]:
    """Inside, forwards without gradients compute in float32, wherever a model's weights are and in whatever dtype they
    are stored: for what is measured of a model to learn how it is built."""
    with placement.by_layer(model), in_float32(model):
        yield


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Inside, forwards compute as if all weights were float32, which are so one module at a time: the rounding of
    bfloat16 would drown what is asked, and TF32's too, and that of 8 bits."""
    products = torch.get_float32_matmul_precision()
    held: dict[nn.Module, dict[str, torch.Tensor]] = {}
    hooks = []

    def widen(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        held[module] = {name: p.data for name, p in module.named_parameters(recurse=False) if is_narrow(p)}
        for name, weight in held[module].items():
            module.get_parameter(name).data = weight.float()
        return tuple(x.float() if isinstance(x, torch.Tensor) and is_narrow(x) else x for x in inputs)

    def narrow(module: nn.Module, *_: Any) -> None:
        for name, weight in held.pop(module).items():
            module.get_parameter(name).data = weight

    for module in model.modules():
        if any(is_narrow(p) for p in module.parameters(recurse=False)):
            # After what gathers the weights, before what gives them back.
            hooks += [module.register_forward_pre_hook(widen), module.register_forward_hook(narrow, prepend=True)]
    torch.set_float32_matmul_precision("highest")
    try:
        with plain_products(model):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        for hook in hooks:
            hook.remove()
        for module in list(held):  # of a forward that has failed
            narrow(module)


@contextmanager
def widened(module: nn.Module) -> Iterator[None]:
    """Inside, all its weights are float32, to be computed with; what they are then is rounded to what they are held in,
    once."""
    narrow = [(weight, weight.dtype) for weight in module.parameters() if is_narrow(weight)]
    for weight, _ in narrow:
        weight.data = weight.data.float()
    try:
        yield
    finally:
        for weight, dtype in narrow:
            weight.data = weight.data.to(dtype)


def is_narrow(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)

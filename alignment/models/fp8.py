"""Linear layers that multiply in 8-bit floating point numbers, by torchao's float8 training.

Such a layer is a linear layer whose weight is what it was, under its own name: whatever reads, trains, saves or shares
weights out knows nothing of it. Weight, input and gradient are rounded anew for each product, with scales that make the
largest number of a tensor, or of a row of it, the largest that 8 bits have. What waits for the backward pass are the
inputs as they came, in what autocast computes in, and no copy of the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeGuard

from torch import nn
from transformers import PreTrainedModel

from alignment.config.errors import ConfigError
from alignment.config.fp8 import Fp8
from alignment.config.packages import TORCHAO, fp8_lacks, is_installed
from alignment.models.autocast import as_autocast_reads
from alignment.models.routers import has_routers

MULTIPLE = 16  # of which both sizes of a weight must be, for the hardware's sake
MARK = "multiplies_in_fp8"


def multiply_in_fp8(hf: PreTrainedModel, how: Fp8) -> None:
    """Have the linear layers of the body multiply in 8 bits; its weights may be without numbers.

    Raises:
        ConfigError: torchao is not installed; and as `require_fp8_layers`.
    """
    if not is_installed(TORCHAO):
        raise ConfigError(fp8_lacks(how))
    require_fp8_layers(hf, how)
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # not above: few runs need it

    settings = Float8LinearConfig.from_recipe_name(how.value)
    if how is not Fp8.rowwise_with_gw_hp:  # a weight's gradient adds up over tokens, of which the hardware takes 16
        settings = replace(settings, pad_inner_dim=True)
    names = [name for name, _ in _linear_layers(hf)]
    convert_to_float8_training(hf.base_model, config=settings, module_filter_fn=lambda layer, _: _is_linear(layer))
    for name in names:
        layer = hf.base_model.get_submodule(name)
        vars(layer)[MARK] = True
        layer.register_forward_pre_hook(as_autocast_reads)


def require_fp8_layers(hf: PreTrainedModel, how: Fp8) -> None:
    """Raises:
    ConfigError: the model is a mixture of experts, has no linear layers, or one whose sizes the hardware does not take;
        names the layer and its sizes.
    """
    name, layers = type(hf).__name__, list(_linear_layers(hf))
    if has_routers(hf.config):
        rule = "model.fp8 must be none for a mixture of experts, whose experts are no linear layers"
        raise ConfigError(f"{rule}, got {how.value!r} for {name}")
    if not layers:
        raise ConfigError(f"model.fp8 must be none for a model without linear layers, got {how.value!r} for {name}")
    for each, layer in layers:
        sizes = layer.in_features, layer.out_features
        if any(size % MULTIPLE for size in sizes):
            rule = f"model.fp8 must be none for a model with linear layers whose sizes are no multiples of {MULTIPLE}"
            raise ConfigError(f"{rule}, got {how.value!r} for {name} with {each} of {sizes[0]} to {sizes[1]}")


def _linear_layers(hf: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """By their names in the body."""
    for name, module in hf.base_model.named_modules():
        if _is_linear(module):
            yield name, module


def _is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """And no layer of another package, such as one that is packed."""
    return type(module) is nn.Linear


def is_fp8(module: nn.Module) -> bool:
    """Whether it multiplies in 8 bits, but within `plain_products`."""
    return MARK in vars(module)


def fp8_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if is_fp8(module)]


def num_in_fp8(model: nn.Module) -> int:
    """Numbers in the weights that multiply in 8 bits."""
    return sum(layer.get_parameter("weight").numel() for layer in fp8_layers(model))


@contextmanager
def plain_products(model: nn.Module) -> Iterator[None]:
    """Inside, all its linear layers are plain ones."""
    layers = [(layer, type(layer)) for layer in fp8_layers(model)]
    for layer, _ in layers:
        layer.__class__ = nn.Linear
    try:
        yield
    finally:
        for layer, kind in layers:
            layer.__class__ = kind

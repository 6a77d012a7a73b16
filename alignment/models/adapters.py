"""The adapters that a model carries: switched on and off, and added into its weights.

A model may carry several by name, of which one is active: PPO's roles on one backbone. What makes them is in `lora`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.config.folders import ADAPTER_FILE
from alignment.config.hub import located
from alignment.distributed.placement import Placement
from alignment.models.quantized import as_in_file, is_quantized, whole_weight
from alignment.models.save import as_saved

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

DEFAULT = "default"
FIRST = "reference"  # a frozen copy of it as it was when the run began
PREFIX = "base_model.model."  # of names in peft's files
BENEATH = re.compile(r"\.base_layer(?=\.|$)")  # what names of weights have where layers have adapters


def is_on_adapter(hf: PreTrainedModel) -> bool:
    """Whether what an adapter lies on was merged of a base and another adapter as it was read: no folder holds that,
    and peft, which is told of that adapter's folder, would put the one in the place of the other."""
    base = hf.name_or_path or ""
    return base != "" and (located(base) / ADAPTER_FILE).is_file()


def use_adapter(hf: PreTrainedModel, name: str) -> None:
    """Make one adapter the active one, and the only one whose weights are trained."""
    for layer in lora_layers(hf):
        layer.set_adapter(name)


def is_adapted(module: nn.Module) -> "TypeGuard[LoraLayer]":
    """Whether it is a layer that peft has put adapters into."""
    return "lora_A" in module._modules


def lora_layers(hf: PreTrainedModel) -> "list[LoraLayer]":
    return [module for module in hf.modules() if is_adapted(module)]


def plain_name(name: str) -> str:
    """Of a weight or module beneath adapters, as in the model without them."""
    return BENEATH.sub("", name)


def adapted_weight(layer: Any) -> str:
    """Which weight of its module peft's layer adds to: `weight`, but of a module with stacks of experts, each of which
    has a layer, one in the other."""
    name: str = vars(layer).get("parameter_name", "weight")
    return name


def is_of_experts(module: nn.Module) -> bool:
    """Whether it is a layer that peft has put around a module for one of its stacks of experts."""
    return is_adapted(module) and "parameter_name" in vars(module)


def adapted_names(hf: nn.Module) -> list[str]:
    """Of the layers that have adapters, by which peft knows them: of a stack of experts its weight's."""
    found: list[tuple[str, Any]] = [(plain_name(name), each) for name, each in hf.named_modules() if is_adapted(each)]
    return [f"{name}.{adapted_weight(each)}" if is_of_experts(each) else name for name, each in found]


@contextmanager
def adapter_off(hf: PreTrainedModel) -> Iterator[None]:
    """Inside, the model is its base: the reference of a LoRA policy."""
    layers = lora_layers(hf)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def adapter_instead(hf: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside, this adapter is the active one, frozen; then what was active before, which trains."""
    layers = lora_layers(hf)
    before = [layer.active_adapters for layer in layers]
    for layer in layers:
        layer.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.set_adapter(active)


@torch.no_grad()
def merged_state(
    hf: PreTrainedModel, placement: Placement, *, dtype: torch.dtype | None = None, keep: bool = True
) -> dict[str, Tensor]:
    """The state dict of the model with its adapter added into the weights; the model itself is left as it is.

    Args:
        dtype: of the weights that are made here, as in `as_saved`: a second set of them in float32 may not fit. None:
            as they are made.
        keep: False where another of the processes that share the weights is to have them: here it is empty then.
    """
    state: dict[str, Tensor] = {}
    tied: dict[int, Tensor] = {}
    buffers = {name for name, _ in hf.named_buffers()}
    for name, tensor in merged_weights(hf, placement):
        if keep and isinstance(tensor, nn.Parameter):  # one tensor for all its names, copied once
            if id(tensor) not in tied:
                tied[id(tensor)] = placement.kept(tensor)
            state[name] = tied[id(tensor)]
        elif keep:
            whole = tensor if name in buffers else tensor.cpu()  # a second copy of all may not fit on the GPU
            state[name] = whole if dtype is None or name in buffers else as_saved(hf, name, whole, dtype)
    return state


def merged_weights(hf: nn.Module, placement: Placement) -> Iterator[tuple[str, Tensor]]:
    """Each of the state dict with its adapter added, by name. One that is sharded is whole while it is the current
    one: parameters are the model's own, what an adapter was added to is in float32 on its weight's device."""
    layers: dict[str, LoraLayer] = {}
    packed: dict[str, nn.Module] = {}
    for path, module in hf.named_modules():
        if is_adapted(module):
            layers[f"{plain_name(path)}.{adapted_weight(module)}"] = module
        elif is_quantized(module):
            packed[f"{plain_name(path)}."] = module
    for name, tensor in hf.state_dict(keep_vars=True).items():
        if ".lora_" in name:
            continue
        name = plain_name(name)
        layer, stem = layers.get(name), f"{name.rpartition('.weight')[0] or name.rpartition('.')[0]}."
        if stem in packed and not name.endswith((".weight", ".bias")):  # how it is packed
            continue
        with placement.whole([tensor] if layer is None else _parameters(layer)):
            if layer is not None:
                yield name, _merged(layer)
            elif stem in packed and name.endswith(".weight"):
                yield name, as_in_file(packed[stem], whole_weight(packed[stem]))
            else:
                yield name, tensor


def _parameters(layer: Any) -> list[nn.Parameter]:
    return list(layer.parameters())


def has_lengths(layer: Any, adapter: str) -> bool:
    """Whether the adapter trains the lengths of the weight's rows too: DoRA's."""
    return adapter in layer.lora_magnitude_vector


def _merged(layer: Any) -> Tensor:
    base = layer.get_base_layer()
    weight = base.get_parameter(layer.parameter_name) if is_of_experts(layer) else whole_weight(base)
    for adapter in layer.active_adapters:
        weight = weight.float() + layer.get_delta_weight(adapter).detach().float()
        if has_lengths(layer, adapter):  # arXiv:2402.09353, eq. 5
            along = 0 if layer.fan_in_fan_out else 1
            lengths = layer.lora_magnitude_vector[adapter].weight.detach().float().unsqueeze(along)
            weight = weight * (lengths / weight.norm(dim=along, keepdim=True))
    return as_in_file(base, weight)

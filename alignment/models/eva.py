"""Adapters that begin at what their layers read of the run's own rows: EVA (arXiv:2410.07170).

A of each layer is the first right singular vectors of its inputs at the replies' tokens, centred (of a run that draws
its replies, at the prompts'); B is 0, so that the
model is what it was. They are found batch by batch, as peft's `initialize_lora_eva_weights` with rho=1 finds them:
every layer keeps the rank that it was given.
"""

from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.lora.eva import SVDHook
from torch import Tensor

from alignment.config.errors import ConfigError
from alignment.data.pack import PADDING, Batch
from alignment.distributed import sequence
from alignment.models.adapters import DEFAULT, adapter_off, is_adapted
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.weight_dtype import forwards_in_float32
from alignment.terminal import say

KEY = "model.lora.init=eva"
ALIKE = 0.99  # the cosine between a vector and what one more batch makes of it, from which on it has settled; peft's
MOST = 1000  # batches after which those that have not settled will hardly do so


@torch.no_grad()
def fill_from_rows(model: LanguageModel | ScalarModel, batches: Iterable[Batch]) -> None:
    """Set A of each layer's new adapter. Every process reads the same batches, without an end to them, and finds the
    same.

    Raises:
        ConfigError: a layer has fewer inputs than the adapter's rank, or its vectors do not settle.
    """
    hooks: dict[Any, SVDHook] = {}
    for name, layer in model.hf.named_modules():
        if is_adapted(layer):
            hooks[layer] = _hook(name, vars(layer)["in_features"], layer.r[DEFAULT])
    handles = {layer: layer.get_base_layer().register_forward_hook(hook) for layer, hook in hooks.items()}
    least = max(hook.n_components for hook in hooks.values())
    read = 0
    with sequence.each_alone(), adapter_off(model.hf), forwards_in_float32(model.hf, model.placement):
        for batch, _ in zip(batches, range(MOST), strict=False):
            mask = ((batch.branches > 0) & (batch.groups != PADDING)).flatten()
            if int(mask.sum()) <= least:  # of which no more vectors come than one fewer
                continue
            device, read = next(model.parameters()).device, read + 1
            for hook in hooks.values():
                vars(hook)["model_input"] = mask.to(device)
            model.hidden(batch.to(device), torch.arange(mask.numel(), device=device))
            for layer in [layer for layer in handles if hooks[layer].converged.all()]:
                handles.pop(layer).remove()
            if not handles:
                break
    for handle in handles.values():
        handle.remove()
    if handles:
        rule = f"{KEY} must find singular vectors that settle; in {len(handles)} of {len(hooks)} layers they have not, "
        rule += f"in {MOST} batches of training rows, {read} of which have more tokens that are read than the rank"
        raise ConfigError(f"{rule} (a smaller model.lora.rank, or model.lora.init=default), got rank {least}")
    for layer, hook in hooks.items():
        layer.lora_A[DEFAULT].weight.copy_(hook.svd.components_)
    say(f"{KEY}: A of {len(hooks)} layers is what they read most of, from {read} batches of training rows")


def _hook(name: str, width: int, rank: int) -> SVDHook:
    if rank > width:
        raise ConfigError(f"model.lora.rank must be <= {width} for {KEY}, the inputs of {name}, got {rank}")
    return SVDHook(
        n_components=rank,
        sim_thresh=ALIKE,
        name=name,
        prepare_layer_inputs_fn=_at_replies,
        gather_distributed_inputs=False,
    )


def _at_replies(inputs: Any, mask: Tensor, name: str) -> Tensor:
    """[tokens, in] of those in `mask`; a row that a kernel wants longer has padding behind them."""
    states: Tensor = inputs[0].flatten(0, -2)
    return states[: len(mask)][mask]

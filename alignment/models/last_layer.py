"""The last layer's feed-forward, computed where it is read and nowhere else.

Nothing attends to what the last layer puts out, and a feed-forward takes each token alone. So it is needed only where a
read-out looks: on a pair's completions and not its prompt, on a reward model's two last tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def feed_forward_at(hf: PreTrainedModel, positions: Tensor, shape: torch.Size) -> Iterator[None]:
    """Inside, a forward over rows of `shape` [R, L] puts out the last layer's feed-forward at `positions` [T] of the
    rows laid end to end, and zeros elsewhere.

    Everywhere as before, where the architecture does not call it `mlp` or runs a layer more than once, and under
    gradient checkpointing, which runs the layer again when this is over.
    """
    module = _last_feed_forward(hf)
    if module is None:
        yield
        return
    read = positions.unique()

    def take(value: Any) -> Any:
        is_of_tokens = isinstance(value, Tensor) and value.shape[:2] == shape
        return value.flatten(0, 1).index_select(0, read)[None] if is_of_tokens else value

    def put_back(output: Any) -> Any:
        if isinstance(output, tuple):  # some mixtures of experts add what their router said
            return put_back(output[0]), *output[1:]
        everywhere = output.new_zeros(shape.numel(), output.shape[-1])
        return everywhere.index_copy_(0, read, output[0]).view(*shape, -1)

    def before(
        _: nn.Module, inputs: tuple[Any, ...], settings: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(take, inputs)), {name: take(value) for name, value in settings.items()}

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return put_back(output)

    hooks = module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _last_feed_forward(hf: PreTrainedModel) -> nn.Module | None:
    layers = [module for module in hf.base_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    runs_each_once = len(layers) == hf.config.get_text_config().num_hidden_layers
    if not layers or not runs_each_once or layers[-1].gradient_checkpointing:
        return None
    return layers[-1]._modules.get("mlp")

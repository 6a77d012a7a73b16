"""The last layer's feed-forward, computed where it is read and nowhere else.

Nothing attends to what the last layer puts out, and in most architectures a feed-forward takes each token alone. There
it is needed only where a read-out looks: on a pair's completions and not its prompt, on a reward model's two last
tokens. In which architectures, a model is asked itself (`reads_apart`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

TOLERANCE = 1e-5  # relative; float32 rounding is ten times smaller


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # two tiny texts
def reads_apart(hf: PreTrainedModel) -> bool:
    """Whether a model's hidden states at some positions are the same with the last feed-forward NaN at all others.

    They are not where that layer runs again, where a convolution comes after it, or where it mixes tokens itself; nor
    is there anything to compare where it has another name than `mlp`.
    """
    if _last_feed_forward(hf) is None:
        return False
    device = next(hf.parameters()).device
    ids = torch.tensor([[0, 1, 2, 3, 4], [0, 2, 4, 1, 3]], device=device)
    read = torch.tensor([2, 4, 8], device=device)
    was_training = hf.training
    hf.eval()
    everywhere = hf.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[read]
    with feed_forward_at(hf, read, ids.shape, elsewhere=torch.nan):
        apart = hf.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[read]
    hf.train(was_training)
    difference = (apart - everywhere).abs().max() / everywhere.abs().max()
    return bool(difference < TOLERANCE)  # False for NaN


@contextmanager
def feed_forward_at(
    hf: PreTrainedModel, positions: Tensor, shape: torch.Size, *, elsewhere: float = 0.0
) -> Iterator[None]:
    """Inside, a forward over rows of `shape` [R, L] computes the last layer's feed-forward at `positions` [T] of the
    rows laid end to end, and has it put out `elsewhere` at the others. For models that `reads_apart` finds fit.

    Changes nothing in a model that checkpoints its layers: they run again when this is over. Nor does it in a forward
    of such a model that learns nothing, for a matrix product of fewer rows may round otherwise, and PPO's first ratio
    is one.
    """
    found = _last_feed_forward(hf)
    if found is None or found[0].gradient_checkpointing:
        yield
        return
    read = positions.sort().values  # a completion's first token and its twin's are predicted from one position:
    is_first = torch.cat([torch.ones_like(read[:1], dtype=torch.bool), read[1:] != read[:-1]])
    places = torch.where(is_first, read, shape.numel())  # the others' go behind the rows, a GPU need not count them

    def take(value: Any) -> Any:
        is_of_tokens = isinstance(value, Tensor) and value.shape[:2] == shape
        return value.flatten(0, 1).index_select(0, read)[None] if is_of_tokens else value

    def put_back(output: Any) -> Any:
        if isinstance(output, tuple):  # what some mixtures of experts add, of the tokens taken; it is not read
            return put_back(output[0]), *output[1:]
        whole = output.new_full((shape.numel() + 1, output.shape[-1]), elsewhere)
        return whole.index_copy_(0, places, output[0])[:-1].view(*shape, -1)

    def before(
        _: nn.Module, inputs: tuple[Any, ...], settings: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(take, inputs)), {name: take(value) for name, value in settings.items()}

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return put_back(output)

    _, module = found
    hooks = module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _last_feed_forward(hf: PreTrainedModel) -> tuple[GradientCheckpointingLayer, nn.Module] | None:
    """The last of as many layers as the config counts, and its feed-forward, if that has the usual name."""
    config = hf.config.get_text_config()
    layers = [module for module in hf.base_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or "num_hidden_layers" not in {*config.to_dict(), *config.attribute_map}:
        return None
    module = layers[-1]._modules.get("mlp")
    return None if module is None or len(layers) != config.num_hidden_layers else (layers[-1], module)

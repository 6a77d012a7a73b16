"""The head of one number: which module of a model it is, and under which names a folder may hold its weights."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from alignment.config.sections import ConfigError
from alignment.distributed.placement import Placement
from alignment.models.files import names_in, read_weight

OTHER_NAMES = (
    *(".score", "classifier", "classification_head", "regression_head", "reward_head"),
    *("v_head.summary", "v_head", "value_head"),
)
"""What trainers call it beside `score`, transformers' own name: one linear map of the last hidden state."""


def head_name(hf: PreTrainedModel) -> str | None:
    """The module of a model for sequence classification that is its scalar head: the one linear layer beside the body,
    of one output. None where there is no such, as in a language model."""
    if hf.get_output_embeddings() is not None:
        return None
    beside = [
        name
        for name, module in hf.named_children()
        if name != hf.base_model_prefix and next(module.parameters(), None) is not None
    ]
    is_scalar = len(beside) == 1 and isinstance(hf._modules[beside[0]], nn.Linear)
    return beside[0] if is_scalar else None


def scalar_head(hf: PreTrainedModel) -> nn.Linear:
    """The scalar head.

    Raises:
        ConfigError: the architecture has none.
    """
    name = head_name(hf)
    head = None if name is None else hf._modules[name]
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"model.path must have a scalar head, one linear layer, got a {type(hf).__name__}")
    return head


@torch.no_grad()
def fill_head(hf: PreTrainedModel, folder: Path, key: str, placement: Placement) -> set[str]:
    """Read what the folder has of a scalar head under names that transformers' model has not: the weight where it has
    another name, and the bias, which moves all scores alike. Returns the names of the model's weights that are read.
    The files are asked, for transformers tells what it has not read of them only where a model is whole."""
    own, head = head_name(hf), scalar_head(hf)
    parts = [name.rpartition(".") for name in sorted(names_in(folder, key) - hf.state_dict().keys())]
    found = {part: stem for stem, _, part in parts if stem == own or stem.endswith(OTHER_NAMES)}
    if "weight" in found:
        weight = read_weight(folder, f"{found['weight']}.weight", key)
        if weight.shape != (1, head.in_features):
            return set()
        with placement.whole([head.weight], write=True):
            head.weight.copy_(weight)
    if "bias" in found:
        head.bias = nn.Parameter(read_weight(folder, f"{found['bias']}.bias", key).to(head.weight))
    return {f"{own}.{part}" for part in found}


@torch.no_grad()
def draw_head(hf: PreTrainedModel, placement: Placement) -> None:
    """A new head, std 1 / sqrt(H + 1) (arXiv:2403.17031)."""
    head = scalar_head(hf)
    with placement.whole([head.weight], write=True):
        nn.init.normal_(head.weight, std=1 / (head.in_features + 1) ** 0.5)

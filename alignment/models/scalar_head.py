"""The head of one number: which module of a model it is, and under which names a folder may hold its weights."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from alignment.config.errors import ConfigError
from alignment.config.model_kinds import HEAD_NAMES
from alignment.distributed.placement import Placement
from alignment.models.files import names_in, read_weight


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
def fill_head(hf: PreTrainedModel, folder: Path, key: str, placement: Placement, lacking: Collection[str]) -> set[str]:
    """Read what the folder has of a scalar head under names that transformers' model has not: the weight of another
    name where the model's own is `lacking`, and its bias, which moves all scores alike. Returns the names of the
    model's weights that are read. The files are asked, for transformers tells what it has not read of them only where a
    model is whole.

    Raises:
        ConfigError: there are several such heads, and none of the model's own name.
    """
    own, head, names = head_name(hf), scalar_head(hf), names_in(folder, key)
    foreign, filled = names - hf.state_dict().keys(), set[str]()
    found = next((each for each in (own, f"{hf.base_model_prefix}.{own}") if f"{each}.weight" in names), None)
    if found is None and f"{own}.weight" in lacking:
        parts = [name.rpartition(".") for name in sorted(foreign)]
        stems = [stem for stem, _, part in parts if part == "weight" and stem.endswith(HEAD_NAMES)]
        weights = {stem: read_weight(folder, f"{stem}.weight", key) for stem in stems}
        fitting = [stem for stem in stems if weights[stem].shape == (1, head.in_features)]
        if not fitting:
            return set()
        if len(fitting) > 1:
            raise ConfigError(f"{key} must hold one scalar head, got {' and '.join(fitting)} in {str(folder)!r}")
        found = fitting[0]
        with placement.whole([head.weight], write=True):
            head.weight.copy_(weights[found])
        filled.add(f"{own}.weight")
    if f"{found}.bias" in foreign:
        head.bias = nn.Parameter(read_weight(folder, f"{found}.bias", key).to(head.weight))
        filled.add(f"{own}.bias")
    return filled


@torch.no_grad()
def draw_head(hf: PreTrainedModel, placement: Placement) -> None:
    """A new head, std 1 / sqrt(H + 1) (arXiv:2403.17031); drawn on the CPU, the same wherever it goes."""
    head = scalar_head(hf)
    drawn = torch.empty(head.out_features, head.in_features).normal_(std=1 / (head.in_features + 1) ** 0.5)
    with placement.whole([head.weight], write=True):
        head.weight.copy_(drawn)

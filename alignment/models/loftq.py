"""Adapters that begin as what packing has taken from the weights beneath them: LoftQ (arXiv:2310.08659).

One turn of its algorithm, as peft's `replace_lora_weights_loftq` has it: the packed weight Q stays what the file's is
packed to, so that the adapter is one of that base, packed likewise, wherever it is read again. The paper's later turns
would pack another weight.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment.config.errors import ConfigError
from alignment.config.folders import find_model
from alignment.config.model import ModelConfig
from alignment.distributed.placement import Placement
from alignment.models.adapters import DEFAULT, FIRST, is_adapted
from alignment.models.decomposed import largest_part
from alignment.models.files import names_in, read_weight
from alignment.models.quantized import is_quantized, whole_weight


@torch.no_grad()
def fill_lost(hf: PreTrainedModel, config: ModelConfig, placement: Placement) -> None:
    """Set the new adapter of each packed layer, and the frozen copy of it, to scaling * B A, the nearest of its rank to
    W - Q, in float32; where W is read from the model's folder, one at a time.

    Raises:
        ConfigError: the folder has a weight by another name than the model, or one with fewer rows or columns than the
            adapter's rank.
    """
    folder = find_model(str(config.path), "model.path", trusted=config.trust_remote_code)
    names, key = names_in(folder.path, folder.key), "model.lora.init=loftq"
    layers: list[tuple[str, Any]] = [(name, module) for name, module in hf.named_modules() if is_adapted(module)]
    for name, layer in layers:
        base, rank = layer.get_base_layer(), layer.r[DEFAULT]
        if not is_quantized(base):
            continue
        if rank > min(base.out_features, base.in_features):
            rule = f"model.lora.rank must be <= {min(base.out_features, base.in_features)} for {key}"
            raise ConfigError(f"{rule}, the smaller side of {name}, got {rank}")
        in_file = f"{name}.weight"
        if in_file not in names:
            rule = f"{key} must find {in_file} under that name in model.path={config.path}, which calls it otherwise"
            raise ConfigError(f"{rule} (model.lora.init=default begins without it)")
        with placement.whole([base.weight]):
            packed = whole_weight(base).float()
        weight = read_weight(folder.path, in_file, folder.key).to(packed.device).float()
        lost = _lost(weight, packed)
        b, a = largest_part(lost, rank, layer.scaling[DEFAULT])
        for adapter in (DEFAULT, FIRST):
            down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            with placement.whole([down, up], write=True):
                up.copy_(b)
                down.copy_(a)


def _lost(weight: Tensor, packed: Tensor) -> Tensor:
    """W - Q. GPT-2's files have a weight the other way round, which a square one's shape does not tell: of W and its
    transpose it is the one that was packed, to which Q is near."""
    ways = [each - packed for each in (weight, weight.T) if each.shape == packed.shape]
    return min(ways, key=lambda lost: float(lost.norm()))

"""The adapters of a model's folder, which lie on its weights one after the other, added into them as they are read."""

import torch
from transformers import PreTrainedModel

from alignment.config.errors import ConfigError
from alignment.config.folders import ModelFolder
from alignment.config.hub import located
from alignment.config.model import ModelConfig
from alignment.config.saved_prompt import is_soft_prompt
from alignment.distributed.placement import Placement
from alignment.models.packed_base import round_base
from alignment.models.quantized import is_unpacked, quantization_of, unpack_layers
from alignment.terminal import say_once


def merge_adapters(
    hf: PreTrainedModel, config: ModelConfig, folder: ModelFolder, placement: Placement, where: str, held: torch.dtype
) -> set[str]:
    """Add the adapters into the weights, which are rounded where they were packed beneath one, and unpacked into the
    dtype `held` where they are packed; a soft prompt stands before the texts.

    Returns:
        the names of what the adapters hold whole.
    """
    whole = set[str]()
    if is_unpacked(folder) and quantization_of(hf.config) is not None:
        unpack_layers(hf, held)
    for adapter in folder.adapters:
        round_base(hf, adapter, folder.key, placement)
        if is_soft_prompt(adapter):
            from alignment.models.prompt_files import write_whole

            if adapter != folder.adapters[-1]:
                rule = f"{folder.key}: the base of the adapter in {folder.adapters[-1]} must be without a soft prompt"
                raise ConfigError(f"{rule}, which is in no weight, got {adapter}")
            whole |= write_whole(hf, adapter, folder.key, placement)
            say_once(f"{where}: the soft prompt in {adapter} stands before each text, of its base, {folder.path}")
            continue
        from alignment.models.merge import merge_adapter  # only where there is one: it imports peft, which is slow

        whole |= merge_adapter(hf, adapter, folder.key, placement)
        beside = " beside whole weights" if adapter == folder.path else ""
        is_asked = adapter == located(str(config.path)) and config.lora.rank and config.adapter is None
        way = f" (model.adapter={adapter} trains it on)" if is_asked else ""
        say_once(f"{where}: the adapter in {adapter}{beside} is merged into its base, {folder.path}{way}")
    return whole

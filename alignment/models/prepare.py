"""A model made ready to be trained or read, once its weights are there: without noise, with its adapter."""

from torch import nn
from transformers import PreTrainedModel

from alignment.config.fp8 import Fp8
from alignment.config.model import LoraInit, ModelConfig
from alignment.config.saved_prompt import tokens_before
from alignment.distributed.placement import Placement
from alignment.models.activations import Hooks
from alignment.models.fp8 import multiply_in_fp8
from alignment.models.whole_modules import train_whole


def placed(hf: PreTrainedModel, config: ModelConfig, placement: Placement) -> PreTrainedModel:
    """`prepared`, with the weights of a saved adapter or soft prompt, and what its layers keep on the CPU where asked.

    Raises:
        ConfigError: the adapter cannot be read, or was trained on another model.
    """
    prepared(hf, config, placement)
    if config.activation_offloading:
        Hooks(hf.base_model)
    if tokens_before(config):
        from alignment.models.prompt_files import fill_soft_prompt

        fill_soft_prompt(hf, config, placement)
    elif config.adapter is not None:
        from alignment.models.saved_adapter import fill_saved

        fill_saved(hf, config, placement)
    elif config.lora.init is LoraInit.loftq:
        from alignment.models.loftq import fill_lost

        fill_lost(hf, config, placement)
    return hf


def prepared(hf: PreTrainedModel, config: ModelConfig, placement: Placement) -> PreTrainedModel:
    """Noise off (a policy whose log-probs change between two forwards has no ratio), checkpointing, adapter or soft
    prompt, and what linear layers multiply in."""
    for module in hf.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # the rates that attention, experts and layers keep as numbers
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
    if config.gradient_checkpointing:
        hf.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if tokens_before(config):
        from alignment.models.prompt_files import add_soft_prompt  # not above: see lora

        add_soft_prompt(hf, config, placement)
    elif config.adapter is not None:
        from alignment.models.saved_adapter import add_saved

        add_saved(hf, config)
    elif config.lora.rank:
        from alignment.models.lora import add_adapter

        add_adapter(hf, config.lora)
        if config.lora.init.changes_base:
            from alignment.models.decomposed import decompose

            decompose(hf, config.lora.init, placement)
        if config.lora.init.adds_at_first:
            from alignment.models.saved_adapter import add_copy

            add_copy(hf, placement)
    if config.lora.modules_to_save:
        train_whole(hf, config.lora.modules_to_save, placement, are_all_here=config.adapter is None)
    if config.fp8 is not Fp8.none:
        multiply_in_fp8(hf, config.fp8)
    placement.shard(hf)
    return hf

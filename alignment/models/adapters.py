"""LoRA through peft: adapters put into a model in place, switched off for the reference, merged for export."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.config.parts import ConfigError, LoraConfig


def add_adapter(hf: PreTrainedModel, config: LoraConfig) -> None:
    """Freeze the weights and put LoRA layers into them (arXiv:2106.09685); a scalar head stays trained in full."""
    hf.requires_grad_(False)
    head = hf._modules.get("score")
    everything = config.targets == ["all-linear"]
    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear" if everything else config.targets,
        exclude_modules=None if head is None else ["score"],
    )
    try:
        inject_adapter_in_model(peft_config, hf)
    except ValueError as error:
        raise ConfigError(f"model.lora.targets: {str(error).splitlines()[0]}, got {config.targets}") from error
    _check_layers(hf)
    if head is not None:
        head.requires_grad_(True)
    if hf.is_activation_checkpointing:
        hf.enable_input_require_grads()


def _check_layers(hf: PreTrainedModel) -> None:
    """Only what can be merged for export: linear layers, and none whose weight is another module's too."""
    tied = hf.config.get_text_config().tie_word_embeddings and isinstance(hf.get_output_embeddings(), LoraLayer)
    strange = sorted({type(layer).__name__ for layer in lora_layers(hf) if not isinstance(layer, LoraLinear)})
    if tied or strange:
        kind = strange[0] if strange else "the head, tied to the embeddings"
        raise ConfigError(f"model.lora.targets must be linear layers with a weight of their own, got {kind}")


def lora_layers(hf: PreTrainedModel) -> list[LoraLayer]:
    return [module for module in hf.modules() if isinstance(module, LoraLayer)]


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


def merged_state(hf: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model with its adapter added into the weights; the model itself is left as it is."""
    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in hf.state_dict().items() if ".lora_" not in name
    }
    for name, module in hf.named_modules():
        if isinstance(module, LoraLinear):
            for adapter in module.active_adapters:  # on the CPU: a second copy of the weights may not fit on the GPU
                state[f"{name}.weight"] = state[f"{name}.weight"].cpu() + module.get_delta_weight(adapter).cpu()
    return state

"""What each weight of a model is, where optimizers treat it as others or not."""

from enum import Enum

from torch import nn
from transformers import PreTrainedModel

from alignment.config.optimizer import OF_BLOCKS, OptimizerName
from alignment.models.scalar_head import head_name

ADAPTER, ADAPTER_B = "lora_", "lora_B"  # peft's names


class WeightKind(Enum):
    embedding = "embedding"
    """Of tokens or positions; a head that is tied to it is one."""
    head = "head"
    """A language model's output embeddings, or the head of one number."""
    adapter_b = "adapter_b"
    """An adapter's B, which begins at 0."""
    hidden = "hidden"
    """All others, an adapter's A among them."""


def weight_kinds(model: nn.Module, head: nn.Module | None) -> dict[str, WeightKind]:
    """Of every parameter by name. `head`: the module that makes logits or a score (`head_of`)."""
    embeddings = {id(p) for each in model.modules() if isinstance(each, nn.Embedding) for p in each.parameters()}
    heads = set() if head is None else {id(p) for p in head.parameters()}

    def kind_of(name: str, weight: nn.Parameter) -> WeightKind:
        if is_of_adapter(name):
            return WeightKind.adapter_b if ADAPTER_B in name.split(".") else WeightKind.hidden
        if id(weight) in embeddings:
            return WeightKind.embedding
        return WeightKind.head if id(weight) in heads else WeightKind.hidden

    return {name: kind_of(name, p) for name, p in model.named_parameters()}


def is_of_adapter(name: str) -> bool:
    """Whether a weight of this name is an adapter's."""
    return any(part.startswith(ADAPTER) for part in name.split("."))


def is_for(optimizer: OptimizerName, kind: WeightKind, num_dimensions: int) -> bool:
    """Whether the optimizer treats such a weight in its own way: muon matrices within the model, adamw_8bit, in pages
    too, all but embeddings. What it does not has AdamW with states in float32."""
    if optimizer is OptimizerName.muon:
        return num_dimensions == 2 and kind in (WeightKind.hidden, WeightKind.adapter_b)
    return optimizer not in OF_BLOCKS or kind is not WeightKind.embedding


def head_of(hf: PreTrainedModel) -> nn.Module | None:
    """The output embeddings of a transformers model, or its head of one number."""
    output: nn.Module | None = hf.get_output_embeddings()
    name = head_name(hf) if output is None else None
    return output if name is None else hf.get_submodule(name)

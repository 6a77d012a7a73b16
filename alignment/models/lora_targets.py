"""What of a model LoRA may be put on: modules by their names, and the experts and routers of a mixture."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment.config.errors import ConfigError
from alignment.config.model import EVERYTHING
from alignment.distributed.engine import shape_of
from alignment.models.routers import has_routers
from alignment.models.scalar_head import head_name
from alignment.user_error import nearest

EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Names that experts and routers had as linear layers, and which peft takes for those of the tensors they are now."""
ROUTERS = {"gate", "router"}
"""What a mixture's routers are called. What one multiplies by is read past an adapter, or it gives more than that."""
TARGETS, PARAMETERS = "model.lora.targets", "model.lora.target_parameters"


def require_targets(hf: PreTrainedModel, names: Sequence[str]) -> None:
    """Raises:
    ConfigError: one of them is no module of the model, or none that gets an adapter: peft puts adapters on the others,
        and says nothing.
    """
    modules = {path: module for path, module in hf.named_modules() if path}
    linear = {path.rpartition(".")[2] for path, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}
    of_experts = EXPERTS if has_fused_experts(hf) else set()
    for name in names:
        found = [path for path in modules if f".{path}".endswith(f".{name}")]
        meant = f"; its linear layers are {', '.join(sorted(linear))}"
        rule = f"{TARGETS} must each be modules of the model, and a {type(hf).__name__} has no {name!r}"
        if name == EVERYTHING:
            rule, meant = f"{TARGETS} must be [{EVERYTHING}] alone or names of modules", ""
        elif found and head_name(hf) in found:
            rule, meant = f"{TARGETS} must leave out {name!r}, the scalar head, which is trained whole", ""
        elif found and not any(_may_have_adapter(hf, path, modules[path]) for path in found):
            kind = type(modules[found[0]]).__name__
            rule = f"{TARGETS} must each be linear layers with a weight of their own, and {name!r} is a {kind}"
        elif found or name in of_experts:
            continue
        else:
            meant = nearest(name, sorted(linear)) or meant
        raise ConfigError(f"{rule}{meant}, got {list(names)}")


def _may_have_adapter(hf: PreTrainedModel, path: str, module: nn.Module) -> bool:
    """As a linear layer; of a mixture's routers more is said where peft has put adapters."""
    return isinstance(module, nn.Linear | Conv1D) or is_of_router(hf, path)


def has_fused_experts(hf: PreTrainedModel) -> bool:
    """Whether a mixture keeps its experts in one tensor for all, which is no linear layer."""
    return has_routers(hf.config) and any(len(shape_of(parameter)) == 3 for parameter in hf.parameters())


def is_of_router(hf: PreTrainedModel, name: str) -> bool:
    return has_routers(hf.config) and not ROUTERS.isdisjoint(name.split("."))


def require_experts(hf: PreTrainedModel, names: Sequence[str]) -> None:
    """Raises:
    ConfigError: one of them is no stack of experts of the model.
    """
    found = [name for name, weight in hf.named_parameters() if len(shape_of(weight)) == 3]
    ends = sorted({".".join(name.split(".")[-2:]) for name in found})
    for name in names:
        if not any(f".{each}".endswith(f".{name}") for each in found):
            rule = f"{PARAMETERS} must be weights that hold all experts of a layer"
            has = f"it has {', '.join(ends)}" if ends else f"a {type(hf).__name__} has none"
            raise ConfigError(f"{rule}, got {name!r}; {has}")


def linear_layers(hf: PreTrainedModel) -> list[str]:
    """The names of a mixture's linear layers, but those that peft would read as the names of experts."""
    head = hf.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in hf.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and name not in hf._modules
        and not is_of_router(hf, name)
    }
    return sorted(found - EXPERTS)

"""Modules that are trained whole beside an adapter (peft's `modules_to_save`): embeddings, a head, norms.

They train in their places, in float32, where peft trains a copy beside the original. A reference that reads the model
as it was has the copies: one pays for them only where there is such a reference while training goes on.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from alignment.config.errors import ConfigError
from alignment.distributed.placement import Placement
from alignment.models.adapters import is_adapted
from alignment.models.quantized import is_quantized
from alignment.models.weight_dtype import as_its_original
from alignment.user_error import nearest

KEY = "model.lora.modules_to_save"
TIED = "embed_tokens"  # peft ties a head to embeddings that are trained where they have this name (0.21.2)


@torch.no_grad()
def train_whole(hf: PreTrainedModel, names: Sequence[str], placement: Placement, *, are_all_here: bool = True) -> None:
    """Have all weights of the modules of these names, or with names that end so, train.

    Args:
        are_all_here: False where a name that no module has is passed over.

    Raises:
        ConfigError: there is no such module, it has an adapter, its weights are packed, or peft could not read it.
    """
    modules, made = dict(hf.named_modules()), dict[int, nn.Parameter]()
    for name in names:
        found = [path for path in modules if path == name or path.endswith(f".{name}")]
        if not found and are_all_here:
            raise ConfigError(f"{KEY} must be modules of a {type(hf).__name__}, got {name!r}{_meant(name, modules)}")
        if found and not any(True for path in found for _ in modules[path].parameters()):
            raise ConfigError(f"{KEY} must be modules that have weights, got {name!r}")
        for inner in (inner for path in found for inner in modules[path].modules()):
            if is_adapted(inner) or is_quantized(inner):
                why = "have an adapter (model.lora.targets)" if is_adapted(inner) else "be quantized"
                raise ConfigError(f"{KEY} must be modules that do not {why}, got {name!r}")
            for weight in list(inner.parameters(recurse=False)):
                if id(weight) not in made:
                    _remake(weight, made, modules, placement)
    _require_tied(hf, modules)


def _meant(name: str, modules: dict[str, nn.Module]) -> str:
    """The nearest name; where none is near, those outside the layers, which are trained so more often than theirs."""
    with_weights = [path for path, module in modules.items() if any(True for _ in module.parameters(recurse=False))]
    outside = [path for path in with_weights if not any(part.isdigit() for part in path.split("."))]
    ends = {path.rpartition(".")[2]: None for path in modules if path and not path.rpartition(".")[2].isdigit()}
    return nearest(name, [*ends, *modules]) or f"; outside its layers it has {', '.join(outside)}"


def _remake(
    weight: nn.Parameter, made: dict[int, nn.Parameter], modules: dict[str, nn.Module], placement: Placement
) -> None:
    """A trained weight in float32 in the place of one that is held in what it computes in, in all modules that have
    it."""
    with placement.whole([weight]):
        new = nn.Parameter(placement.kept(weight).float())
    made[id(weight)] = made[id(new)] = new
    for module in modules.values():
        for key, own in list(module.named_parameters(recurse=False)):
            if own is weight:
                setattr(module, key, new)
                placement.shard(module)


def whole_modules(hf: PreTrainedModel) -> list[str]:
    """The modules that have weights of their own which train beside an adapter, a scalar head among them; of a head
    that is tied to the embeddings these alone."""
    seen, found = set[int](), list[str]()
    for path, module in hf.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in seen]
        if own and ".lora_" not in f".{path}":
            found.append(path)
            seen |= {id(p) for p in own}
    return found


def is_tied(hf: PreTrainedModel) -> bool:
    """Whether the head is the embeddings' weight."""
    head = hf.get_output_embeddings()
    return head is not None and bool(head.weight is hf.get_input_embeddings().weight)


def _require_tied(hf: PreTrainedModel, modules: dict[str, nn.Module]) -> None:
    embeddings = hf.get_input_embeddings()
    name = next(path for path, module in modules.items() if module is embeddings)
    if is_tied(hf) and embeddings.weight.requires_grad and name.rpartition(".")[2] != TIED:
        rule = f"{KEY} must leave out {name!r} of this model, whose head is the same weight"
        raise ConfigError(f"{rule}: peft ties those only where they are called {TIED}")


class Originals(nn.Module):
    """Copies of the modules that a model trains whole, as they are when this is made; frozen."""

    def __init__(self, hf: PreTrainedModel, placement: Placement) -> None:
        super().__init__()
        trained = {id(p) for name, p in hf.named_parameters() if p.requires_grad and ".lora_" not in name}
        self.paths = [
            path for path, module in hf.named_modules() if trained & {id(p) for p in module.parameters(recurse=False)}
        ]
        own = nn.ModuleList(hf.get_submodule(path) for path in self.paths)
        self.copies = placement.copy_of(own, as_its_original(placement.compute))
        self.copies.requires_grad_(False)

    @contextmanager
    def in_place(self, hf: PreTrainedModel) -> Iterator[None]:
        """Inside, the model reads the copies."""
        own = [hf.get_submodule(path) for path in self.paths]
        for path, copy in zip(self.paths, self.copies, strict=True):
            hf.set_submodule(path, copy)
        try:
            yield
        finally:
            for path, module in zip(self.paths, own, strict=True):
                hf.set_submodule(path, module)

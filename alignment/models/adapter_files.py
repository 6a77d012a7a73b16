"""An adapter, and what is trained whole beside it, written in peft's form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from transformers import PreTrainedModel

from alignment.config.folders import ADAPTER_FILE
from alignment.config.hub import pinned_name
from alignment.distributed.placement import Placement
from alignment.models.adapters import (
    DEFAULT,
    FIRST,
    PREFIX,
    adapted_names,
    has_lengths,
    is_adapted,
    is_of_experts,
    lora_layers,
)
from alignment.models.decomposed import as_one, holds_part_of_base, less
from alignment.models.lora import WEIGHTS_FILE, config_of_adapter, shape_of_adapter
from alignment.models.packed_base import note_packing
from alignment.models.save import as_saved, share
from alignment.models.scalar_head import head_name
from alignment.models.whole_modules import is_tied, whole_modules


def save_adapter(
    hf: PreTrainedModel, folder: Path, placement: Placement, dtype: torch.dtype, *, write: bool = True
) -> None:
    """The adapter, and what is trained whole beside it, in peft's form; `dtype` as in `write_weights`, `write` as in
    `save_model`."""
    kept, head = {}, head_name(hf)
    whole = whole_modules(hf) if head is None else sorted({head, *whole_modules(hf)})
    embeddings = hf.get_input_embeddings().weight
    ties = is_tied(hf) and embeddings.requires_grad is True  # peft reads both names of the one weight
    state, has_part = hf.state_dict(keep_vars=True), holds_part_of_base(hf)
    for name, tensor in state.items():
        if f".{DEFAULT}." in name or name.rpartition(".")[0] in whole or (ties and tensor is embeddings):
            first = [state[name.replace(f".{DEFAULT}.", f".{FIRST}.")]] if has_part and ".lora_" in name else []
            with placement.whole([tensor, *first]):
                if write and first:  # in float32: what they share is most of them, and leaves little of lower precision
                    saved = less(name, placement.kept(tensor), placement.kept(first[0]), _scaling(hf, name))
                elif write:
                    saved = as_saved(hf, name, placement.kept(tensor), dtype)
                if write:
                    kept[PREFIX + name_in_file(name)] = saved.clone(memory_format=torch.contiguous_format)
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    shape, own = shape_of_adapter(hf), config_of_adapter(hf)
    if has_part:
        shape = as_one(shape)
    PeftLoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        rank_pattern=_pattern(hf, shape.rank_pattern),
        alpha_pattern=_pattern(hf, shape.alpha_pattern),
        use_rslora=shape.rslora,
        use_dora=has_lengths(lora_layers(hf)[0], DEFAULT),
        target_modules=_targets(hf),
        target_parameters=sorted(own.target_parameters or []) if any(map(is_of_experts, hf.modules())) else None,
        **base_names(hf),
        task_type="CAUSAL_LM" if head is None else "SEQ_CLS",
        modules_to_save=whole or None,
        ensure_weight_tying=ties,
    ).save_pretrained(str(folder))
    save_file(kept, folder / WEIGHTS_FILE)
    share([folder / WEIGHTS_FILE], folder / ADAPTER_FILE)
    note_packing(hf, folder)


def base_names(hf: PreTrainedModel) -> dict[str, Any]:
    """Of the model beneath an adapter, the settings by which peft finds it."""
    base = hf.name_or_path or None
    on_hub = None if base is None else pinned_name(base)
    if on_hub is not None:
        return {"base_model_name_or_path": on_hub.repo, "revision": on_hub.revision}
    return {"base_model_name_or_path": None if base is None else str(Path(base).resolve()), "revision": None}


def _scaling(hf: PreTrainedModel, name: str) -> float:
    """By which the outputs are multiplied that the adapter's tensor of this name has a part in."""
    layer: Any = hf.get_submodule(name.partition(".lora_")[0])
    scaling: float = layer.scaling[DEFAULT]
    return scaling


def _pattern(hf: PreTrainedModel, numbers: Mapping[str, int]) -> dict[str, int]:
    """As it is saved: peft writes it in the order of its names, so that it is by layers where the order counts."""
    own = {name: numbers.get(get_pattern_key(list(numbers), name)) for name in adapted_names(hf)}
    is_same = all(numbers.get(get_pattern_key(sorted(numbers), name)) == number for name, number in own.items())
    return {name: number for name, number in (numbers if is_same else own).items() if number is not None}


def _targets(hf: PreTrainedModel) -> list[str]:
    """The last parts of the adapted layers' names, or their names where others have the same last parts; without those
    of experts."""
    adapted = [name for name, module in hf.named_modules() if not is_of_experts(module) and is_adapted(module)]
    last = {name.rpartition(".")[2] for name in adapted}
    found = [name for name, module in hf.named_modules() if name.rpartition(".")[2] in last]
    return sorted(last if found == adapted else adapted)


def name_in_file(name: str) -> str:
    """peft's: without the adapter's own name, and of DoRA's lengths, which were once no module, without `weight`."""
    name = name.replace(f".{DEFAULT}.", ".")
    return name.removesuffix(".weight") if name.endswith(".lora_magnitude_vector.weight") else name

"""Weights in a folder, in Hugging Face form."""

import json
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from stat import S_IMODE

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from alignment.config.errors import UserError
from alignment.models.quantized import quantization_of
from alignment.models.scalar_head import head_name
from alignment.process import unseen

FILE_SIZE = "50GB"  # as in transformers: what is larger is saved in several files, with an index


def write_weights(hf: PreTrainedModel, state: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Config and safetensors of a model whose weights are those of `state`, wherever its own are; in `dtype`, but for
    what `as_saved` keeps, and the config says so.

    Raises:
        UserError: one has another shape than in a model of this config, or is not there; nothing is written.
    """
    check_shapes(hf, state)
    buffers = {name for name, _ in hf.named_buffers()}
    written: dict[int, Tensor] = {}  # one tensor for all its names
    whole, state = state, {}
    for name, weight in whole.items():
        if name not in buffers and id(weight) not in written:
            written[id(weight)] = _beside_others(as_saved(hf, name, weight, dtype))
        state[name] = weight if name in buffers else written[id(weight)]
    if quantization_of(hf.config) is not None:
        hf = _in_whole_weights(hf)
    total = sum(weight.numel() for weight in {id(weight): weight for weight in state.values()}.values())
    with unseen("deepspeed"):  # accelerate would load it to ask whether this is one of its engines
        hf.save_pretrained(folder, state_dict=state, max_shard_size=FILE_SIZE)
    hf.config.dtype = dtype  # transformers has written what its first weight is held in
    hf.config.save_pretrained(folder)
    share(folder.glob("*.safetensors"), folder / CONFIG_NAME)
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.exists():  # transformers has counted what is in the model
        content = json.loads(index.read_text())
        content["metadata"]["total_parameters"] = total
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _beside_others(weight: Tensor) -> Tensor:
    """On the CPU where it is a part of a larger tensor, as ZeRO 1 and 2 lay all that train in one: transformers copies
    such a weight where it is, and a GPU may have no room for all of them once more."""
    return weight.cpu() if weight.untyped_storage().nbytes() > weight.nbytes else weight


def share(files: Iterable[Path], like: Path) -> None:
    """safetensors makes its files for their owner alone: let them be read by whoever may read the file beside them."""
    for file in files:
        file.chmod(S_IMODE(like.stat().st_mode))


def as_saved(hf: PreTrainedModel, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in `dtype`; as it is where that is what it is, a scalar head's, whose scores bfloat16 would round to
    ties, and one that its architecture keeps in float32 whatever the others are."""
    strict = any(kept in name for kept in hf._keep_in_fp32_modules_strict or ())
    is_kept = strict or name.rpartition(".")[0] == head_name(hf) or not weight.is_floating_point()
    return weight if is_kept or weight.dtype == dtype else weight.to("cpu", dtype)


def check_shapes(hf: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Against a model made anew of the config, for the model's own weights may be sharded, or given back.

    Raises:
        UserError: as `write_weights`.
    """
    with torch.device("meta"):
        wanted = type(hf)(deepcopy(hf.config)).state_dict()
    for name, weight in wanted.items():
        found = list(state[name].shape) if name in state else None
        if found != list(weight.shape):
            rule = f"a {type(hf).__name__} must be saved with {name} of shape {list(weight.shape)}, got {found}"
            raise UserError(f"{rule}: its weights are sharded, and it was loaded with a placement that says otherwise")


def _in_whole_weights(hf: PreTrainedModel) -> PreTrainedModel:
    """A model without weights, whose config says nothing of how those of `hf` are quantised."""
    config = deepcopy(hf.config)
    del config.quantization_config
    with torch.device("meta"):
        whole = type(hf)(config)
    if hf.can_generate():
        whole.generation_config = hf.generation_config
    return whole

"""Weights in a folder, in Hugging Face form."""

import json
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

FILE_SIZE = "50GB"  # as in transformers: what is larger is saved in several files, with an index


def write_weights(hf: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    """Config and safetensors of a model whose weights are those of `state`, wherever its own are."""
    total = sum(weight.numel() for weight in {id(weight): weight for weight in state.values()}.values())
    hf.save_pretrained(folder, state_dict=state, max_shard_size=FILE_SIZE)
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.exists():  # transformers has counted what is in the model
        content = json.loads(index.read_text())
        content["metadata"]["total_parameters"] = total
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

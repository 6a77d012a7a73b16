"""What tests of models share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, save_model

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}


@pytest.fixture(params=["llama", "gpt2"])
def base(
    request: pytest.FixtureRequest, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Path:
    """A saved model; GPT-2 keeps its weights the other way round."""
    torch.manual_seed(0)
    init = {"llama": tiny_init, "gpt2": GPT2}[request.param]
    save_model(load_language_model(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, tmp_path / "base")
    return tmp_path / "base"

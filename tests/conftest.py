"""What all tests may use."""

import os
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.parts import ModelConfig
from alignment.models.tokenizer import load_tokenizer

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small are slower on many threads, and sums do not depend on how many there are."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or fills the cache of whoever runs it."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and tokenizers, in the folder `shared` next to the checkout."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no folder `shared` with real data next to the checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_init() -> dict[str, object]:
    """`model.init` of a Llama of 90 thousand weights."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The small tokenizer in the package: pad 0, bos 1, eos 2."""
    return load_tokenizer(ModelConfig(init=dict(TINY)))

"""A model in fewer bits beside the full one: distributions, bytes and errors."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.model import ModelConfig
from alignment.config.quantized_self import QuantizedSelf
from alignment.data.pack import pack
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.models.divergence import next_token_divergence
from alignment.models.fewer_bits import PACKED, ROUNDED, cost_of, round_layers, weight_bytes
from alignment.models.load import load_frozen_language_model, load_language_model, save_model
from alignment.models.quantized import is_quantized, packed_layers

WIDE = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}  # whole blocks in each row
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "initializer_range": 0.1}


@pytest.fixture(params=["llama", "gpt2"])
def folder(
    request: pytest.FixtureRequest, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Path:
    """Weights as [outputs, inputs], and the other way round."""
    torch.manual_seed(0)
    init = {**tiny_init, **WIDE} if request.param == "llama" else {**GPT2, "vocab_size": 2048}
    model = load_language_model(ModelConfig(init=init), tokenizer, WHOLE)
    save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", QuantizedSelf)
def test_the_layers_that_are_rounded_are_those_that_are_packed(
    folder: Path, kind: QuantizedSelf, tokenizer: PreTrainedTokenizerBase, demonstrations: list[Example]
) -> None:
    settings = ModelConfig(path=str(folder))
    full = load_frozen_language_model(settings, tokenizer, WHOLE)
    packed = load_frozen_language_model(
        ModelConfig(path=str(folder), quantization=PACKED[QuantizedSelf.int8]), tokenizer, WHOLE
    )
    if kind.is_packed:
        other = load_frozen_language_model(ModelConfig(path=str(folder), quantization=PACKED[kind]), tokenizer, WHOLE)
        assert is_quantized(other.hf.get_submodule(packed_layers(packed.hf)[0][0]))
    else:
        other = deepcopy(full)
        round_layers(other.hf, kind)
        changed = {
            name.removesuffix(".weight")
            for (name, mine), theirs in zip(full.hf.named_parameters(), other.hf.parameters(), strict=True)
            if not torch.equal(mine, theirs)
        }
        assert changed == {name for name, _ in packed_layers(packed.hf)} != set()
    cost = cost_of(full.hf, other.hf, kind)
    assert 0 < cost.error.relative < (0.02 if kind.value.endswith("8") else 0.12)
    assert cost.error.count == sum(layer.in_features * layer.out_features for _, layer in packed_layers(packed.hf))
    assert 0 < cost.num_bytes < weight_bytes(full)
    batch = pack(demonstrations, range(len(demonstrations)), layout=Layout.separate, pad_id=0)
    kl, same = next_token_divergence(full, other, batch)
    assert kl.mean() > 0 and (kl > -1e-12).all() and kl.shape == same.shape == batch.targets.shape


def test_a_model_beside_itself(folder: Path, tokenizer: PreTrainedTokenizerBase, demonstrations: list[Example]) -> None:
    full = load_frozen_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    batch = pack(demonstrations, range(len(demonstrations)), layout=Layout.shared, pad_id=0)
    kl, same = next_token_divergence(full, full, batch)
    assert (kl == 0).all() and (same == 1).all() and kl.dtype == torch.float64


def test_kl_is_from_the_full_model(
    folder: Path, tokenizer: PreTrainedTokenizerBase, demonstrations: list[Example]
) -> None:
    """Which puts its probability where the other may have little: the two directions differ."""
    full = load_frozen_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    other = deepcopy(full)
    round_layers(other.hf, QuantizedSelf.absmax4)
    batch = pack(demonstrations, range(len(demonstrations)), layout=Layout.separate, pad_id=0)
    found = next_token_divergence(full, other, batch)[0]
    with torch.no_grad():
        p, q = (each.logits(each.hidden(batch, batch.positions)).log_softmax(-1) for each in (full, other))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").double().sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(found, next_token_divergence(other, full, batch)[0], rtol=1e-3)


def test_every_self_is_packed_or_rounded() -> None:
    assert {*PACKED, *ROUNDED} == set(QuantizedSelf) and not {*PACKED} & {*ROUNDED}
    assert {kind for kind in QuantizedSelf if kind.is_packed} == set(PACKED)

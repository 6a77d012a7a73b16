"""What `model.attention=auto` is on a GPU: the log-probs and gradients of attention group by group."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.model import Attention, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models import varlen
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs
from tests.models.test_varlen import SHAPES, learned, packed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
HEADS = {"num_key_value_heads": 2, "initializer_range": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **HEADS},
    "mistral, window 50": {"model_type": "mistral", "sliding_window": 50, **HEADS},
    "gemma3, window 50": {"model_type": "gemma3_text", "head_dim": 64, "sliding_window": 50, **HEADS},
    "phi, heads of 20": {"model_type": "phi", "hidden_size": 80, "initializer_range": 0.1},
}
LONG = [*SHAPES.values(), [(300, 200, 10), (70, 50, 90), (1, 600, 2)]]


def compared(
    init: dict[str, Any],
    other: Attention,
    tokenizer: PreTrainedTokenizerBase,
    tolerance: float,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Log-probs and every gradient, both in one precision: their distance, relative to their length."""
    for shapes in LONG:
        batch = packed(shapes).to(torch.device("cuda"))
        found = []
        for attention in (Attention.auto, other):
            torch.manual_seed(0)
            config = ModelConfig(init={**SIZES, **init}, attention=attention)
            model = load_language_model(config, tokenizer, WHOLE).cuda().train()
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                logprobs = token_logprobs(model, batch)
            found.append([value.double().cpu() for value in learned(model, logprobs.cpu())])
        for got, want in zip(*found, strict=True):
            assert (got - want).norm() < tolerance * want.norm().clamp(min=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_one_call_a_layer_learns_as_group_by_group(
    name: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    own: Any = varlen.varlen_attn
    monkeypatch.setattr(varlen, "varlen_attn", lambda *parts, **named: (calls.append(None), own(*parts, **named))[1])
    compared(MODELS[name], Attention.sdpa, tokenizer, 0.05)
    assert len(calls) == 2 * len(LONG)


@pytest.mark.parametrize("name", MODELS)
def test_two_calls_a_layer_learn_as_group_by_group(
    name: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "takes_two_calls", lambda batch, _: batch.replies > 1)
    compared(MODELS[name], Attention.sdpa, tokenizer, 0.05)


def test_a_cap_is_flex_attention_s(tokenizer: PreTrainedTokenizerBase) -> None:
    capped = {"model_type": "gemma2", "head_dim": 64, "sliding_window": 50, "attn_logit_softcapping": 0.5, **HEADS}
    compared(capped, Attention.eager, tokenizer, 0.05)


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_flex_attention_s(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    compared(MODELS[name], Attention.sdpa, tokenizer, 1e-3, torch.float32)


def test_heads_above_256_are_flex_attention_s(tokenizer: PreTrainedTokenizerBase) -> None:
    compared({"model_type": "llama", "head_dim": 264, **HEADS}, Attention.sdpa, tokenizer, 0.05)

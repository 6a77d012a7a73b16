"""The model's own limit of positions, held against what the model does beyond it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.models.positions import Positions, max_positions

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
ARCHITECTURES = {
    "gpt2": ({"n_positions": 12}, 12, True),
    "opt": ({"max_position_embeddings": 12, "word_embed_proj_dim": 16, "ffn_dim": 16}, 12, True),
    "gpt_bigcode": ({"n_positions": 12}, 12, True),
    "gpt_neo": ({"max_position_embeddings": 12, "attention_types": [[["global"], 1]]}, 12, True),
    "gptj": ({"n_positions": 12, "rotary_dim": 4}, 12, True),
    "biogpt": ({"max_position_embeddings": 12, "intermediate_size": 16}, 12, True),
    "mpt": ({"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 12}, 12, True),
    "openai-gpt": ({"n_positions": 12}, 12, True),
    "llama": ({"max_position_embeddings": 12, "intermediate_size": 16}, 12, False),
    "gpt_neox": ({"max_position_embeddings": 12, "intermediate_size": 16}, 12, False),
    "xglm": ({"max_position_embeddings": 12, "ffn_dim": 16, "d_model": 16, "num_layers": 1}, 12, False),
    "jamba": (
        {"max_position_embeddings": 12, "intermediate_size": 16, "num_key_value_heads": 2, "attn_layer_offset": 0}
        | {"attn_layer_period": 1, "expert_layer_period": 9, "expert_layer_offset": 8, "use_mamba_kernels": False},
        12,
        False,
    ),
    "bloom": ({}, None, False),
    "mamba": ({}, None, False),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_hard_limit_is_one_that_the_model_cannot_pass(kind: str) -> None:
    settings, limit, hard = ARCHITECTURES[kind]
    config = AutoConfig.for_model(kind, **{**SMALL, **settings})
    assert max_positions(config) == Positions(limit, hard)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model(input_ids=torch.zeros(1, limit or 12, dtype=torch.long), use_cache=False)
        beyond = torch.zeros(1, (limit or 12) + 1, dtype=torch.long)
        if hard:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=beyond, use_cache=False)
        else:
            assert model(input_ids=beyond, use_cache=False).logits.isfinite().all()


def test_the_limit_of_a_model_of_text_and_images_is_that_of_its_text() -> None:
    assert max_positions(AutoConfig.for_model("gemma3")) == Positions(131072, False)

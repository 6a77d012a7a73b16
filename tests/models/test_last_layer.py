"""The last layer's feed-forward at the positions that are read: the same hidden states there, and less work."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignment.models.last_layer import feed_forward_at, reads_apart

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mixtral": SIZES | EXPERTS,
    "gpt_oss": SIZES | EXPERTS | {"head_dim": 8},  # its feed-forward returns a tuple
    "bloom": {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4},  # and this one takes two tensors
}
BYTES = {"num_key_value_heads": 4, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
CROSSED = BYTES | {"intermediate_size": 48, "cross_attn_k": 2, "hidden_size_global": 32}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "in no module of its own": ("opt", SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "run twice": ("hrm_text", SIZES | {"num_hidden_layers": 1, "H_cycles": 2, "L_cycles": 0, "head_dim": 8}),
    "run more often than there are layers": ("hrm_text", SIZES | {"num_hidden_layers": 1, "head_dim": 8}),
    "a convolution after it": (
        "inkling2_text",
        SIZES
        | {"moe_intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8, "n_routed_experts": 4}
        | {"num_experts_per_tok": 2},
    ),
    "experts that mix tokens": (
        "doge",
        SIZES | {"num_key_value_heads": 2, "is_moe": True, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "layers that the config does not count": (
        "blt",
        {"encoder_config": CROSSED, "decoder_config": CROSSED | {"vocab_size": 200}, "global_config": BYTES}
        | {"patcher_config": BYTES, "vocab_size": 200, "encoder_hash_byte_group_vocab": 100, "cross_attn_k": 2},
    ),
}
SHAPE = torch.Size((2, 7))
POSITIONS = torch.tensor([3, 3, 4, 5, 11, 13])  # six of the 14, the first for two completions


def made(kind: str, init: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **init)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for name, weight in model.named_parameters():
        nn.init.normal_(weight, mean=float("norm" in name), std=0.3)
    return model.train()


def feed_forwards(hf: PreTrainedModel) -> list[nn.Module]:
    return [module for name, module in hf.named_modules() if name.endswith(".mlp")]


def hidden_states(hf: PreTrainedModel) -> Tensor:
    """[6, H], at POSITIONS."""
    ids = torch.randint(50, SHAPE, generator=torch.Generator().manual_seed(1))
    output: Tensor = hf.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return output.flatten(0, 1)[POSITIONS]


def with_gradients(hf: PreTrainedModel, hidden: Tensor) -> list[Tensor]:
    """The hidden states, and the gradients of an uneven sum of them."""
    hf.zero_grad()
    (hidden * torch.arange(hidden.numel()).view_as(hidden).sin()).sum().backward()
    return [hidden.detach(), *(p.grad.clone() for p in hf.parameters() if p.grad is not None)]


def assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want) > 1
    for value, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0.0, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_read_is_the_same(kind: str) -> None:
    hf = made(kind, FAMILIES[kind])
    assert reads_apart(hf)
    want = with_gradients(hf, hidden_states(hf))
    seen = tokens_seen(hf)
    with feed_forward_at(hf, POSITIONS, SHAPE):
        got = hidden_states(hf)
    assert_same(with_gradients(hf, got), want)
    assert set(seen) == {14, 6}  # of six that are read; which are the same, a GPU would have to be asked


@pytest.mark.parametrize("why", OTHERS)
def test_a_model_that_needs_it_everywhere_is_found(why: str) -> None:
    kind, init = OTHERS[why]
    assert not reads_apart(made(kind, init))


def test_small_weights_hide_nothing() -> None:
    """At transformers' initial weights a layer that runs again changes the values by hardly more than rounding does."""
    kind, init = OTHERS["run twice"]
    assert not reads_apart(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **init)))


def tokens_seen(hf: PreTrainedModel) -> list[int]:
    """How many tokens each feed-forward computes from now on, a number a call."""
    seen: list[int] = []
    for module in feed_forwards(hf):
        module.register_forward_hook(lambda _, __, output: seen.append(num_tokens(output)))
    return seen


def num_tokens(output: Any) -> int:
    """Of what a feed-forward returns."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden.flatten(0, 1).shape[0]


def test_it_ends_with_the_forward_even_one_that_fails() -> None:
    hf = made("llama", SIZES)
    before = hidden_states(hf)
    with pytest.raises(IndexError), feed_forward_at(hf, torch.tensor([99]), SHAPE):
        hidden_states(hf)
    assert torch.equal(hidden_states(hf), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())


def test_a_layer_that_runs_again_in_the_backward_pass_is_computed_whole() -> None:
    hf = made("llama", SIZES)
    want = with_gradients(hf, hidden_states(hf))
    hf.activation_checkpointing_enable()
    with feed_forward_at(hf, POSITIONS, SHAPE):
        hidden = hidden_states(hf)
    assert_same(with_gradients(hf, hidden), want)


def test_a_checkpointing_model_computes_the_same_with_and_without_gradients() -> None:
    """A product of fewer rows rounds otherwise on some processors, and a policy's ratio to itself must be one."""
    hf = made("llama", SIZES)
    hf.activation_checkpointing_enable()
    seen = tokens_seen(hf)
    with torch.no_grad(), feed_forward_at(hf, POSITIONS, SHAPE):
        hidden_states(hf)
    assert seen == [14, 14]

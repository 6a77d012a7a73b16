"""The last layer's feed-forward at the positions that are read: the same hidden states there, and less work."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignment.models.last_layer import feed_forward_at

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mixtral": SIZES | EXPERTS,
    "gpt_oss": SIZES | EXPERTS | {"head_dim": 8},  # its feed-forward returns a tuple
    "bloom": {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4},  # and this one takes two tensors
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},  # this one is in no module of its own
    "hrm_text": SIZES | {"num_hidden_layers": 1, "H_cycles": 2, "L_cycles": 1, "head_dim": 8},  # runs its layers again
}
SHAPE = torch.Size((2, 7))
POSITIONS = torch.tensor([3, 3, 4, 5, 11, 13])  # five of the 14, one of them for two completions


def made(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **FAMILIES[kind])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
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
    hf = made(kind)
    want = with_gradients(hf, hidden_states(hf))
    seen: list[int] = []
    for module in feed_forwards(hf):
        module.register_forward_hook(lambda _, __, output: seen.append(num_tokens(output)))
    with feed_forward_at(hf, POSITIONS, SHAPE):
        got = hidden_states(hf)
    assert_same(with_gradients(hf, got), want)
    assert set(seen) == (set() if kind == "opt" else {14} if kind == "hrm_text" else {14, 5})


def num_tokens(output: Any) -> int:
    """Of what a feed-forward returns."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden.flatten(0, 1).shape[0]


def test_it_ends_with_the_forward_even_one_that_fails() -> None:
    hf = made("llama")
    before = hidden_states(hf)
    with pytest.raises(IndexError), feed_forward_at(hf, torch.tensor([99]), SHAPE):
        hidden_states(hf)
    assert torch.equal(hidden_states(hf), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())


def test_a_layer_that_runs_again_in_the_backward_pass_is_computed_whole() -> None:
    hf = made("llama")
    want = with_gradients(hf, hidden_states(hf))
    hf.activation_checkpointing_enable()
    with feed_forward_at(hf, POSITIONS, SHAPE):
        hidden = hidden_states(hf)
    assert_same(with_gradients(hf, hidden), want)

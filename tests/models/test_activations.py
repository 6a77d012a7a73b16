"""What layers keep for the backward pass, on the CPU: the same bits, no weights, and as much as is counted.

The memory of a CPU stands in for a GPU's, so that trl's own code moves what it is given."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.config.model import LoraConfig, ModelConfig
from alignment.distributed.placement import Whole
from alignment.models.activations import Hooks, on_host
from alignment.models.allocations import Allocations
from alignment.models.prepare import placed

LAYERS, OF_LAST_NORM = 3, 3  # tensors of a token's hidden size: the layers' inputs, and what no layer computes again
SIZES = {"hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
LLAMA: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "vocab_size": 64}
IDS = torch.arange(40).reshape(2, 20)
LORA = LoraConfig(rank=2)


@pytest.fixture(autouse=True)
def _a_cpu_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda is_here=False: None if is_here else device)
    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)


def model_of(**more: Any) -> Any:
    torch.manual_seed(0)
    config = ModelConfig(init={"model_type": "llama", **LLAMA}, **more)
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA), attn_implementation="sdpa")
    return placed(hf, config, Whole(torch.float32)).train()


def gradients(hf: nn.Module, *, lower: bool = False) -> dict[str, Tensor]:
    """Of two forwards in one graph, as two calls for one batch are."""
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        loss = sum(hf(input_ids=ids).logits.float().logsumexp(-1).square().mean() for ids in (IDS, IDS.flip(1)))
    loss.backward()
    return {name: p.grad for name, p in hf.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("lora", [LoraConfig(), LORA])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_same_bits(checkpointing: bool, lora: LoraConfig, lower: bool) -> None:
    want = gradients(model_of(gradient_checkpointing=checkpointing, lora=lora), lower=lower)
    moved = model_of(gradient_checkpointing=checkpointing, lora=lora, activation_offloading=True)
    got = gradients(moved, lower=lower)
    assert got.keys() == want.keys() and want
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_as_much_is_moved_as_is_counted(checkpointing: bool) -> None:
    hf, held = model_of(gradient_checkpointing=checkpointing), list[Any]()
    hooks = Hooks(hf.base_model, lambda layers: held.append(on_host(layers)) or held[-1])
    loss = hf(input_ids=IDS).logits.sum()
    (forward,) = held
    there = [kept for kept, is_moved, *_ in forward.tracker.values() if is_moved]
    places = {p.untyped_storage().data_ptr() for p in hf.parameters()}
    assert places.isdisjoint(each.untyped_storage().data_ptr() for each in there)
    inputs = sum(each.shape == (*IDS.shape, 32) for each in there)
    assert inputs == LAYERS + OF_LAST_NORM if checkpointing else inputs > LAYERS + OF_LAST_NORM
    loss.backward()
    assert forward.tracker == {}
    hooks.remove()
    with Allocations(hf.parameters()) as counted:
        Hooks(hf.base_model, counted.moving)
        hf(input_ids=IDS).logits.sum().backward()
    assert counted.on_host == sum(each.numel() * each.element_size() for each in there) > 0


def test_nothing_is_moved_where_nothing_is_learned() -> None:
    hf, held = model_of(), list[Any]()
    Hooks(hf.base_model, lambda layers: held.append(on_host(layers)) or held[-1])
    with torch.no_grad():
        hf(input_ids=IDS)
    assert held == []


def test_hooks_end_with_a_forward_that_fails() -> None:
    hf = model_of(activation_offloading=True)
    with pytest.raises(IndexError):
        hf(input_ids=IDS + 1000)
    kept = torch.ones(1024, requires_grad=True).exp()
    assert kept.grad_fn._saved_result.data_ptr() == kept.data_ptr()  # by no hook

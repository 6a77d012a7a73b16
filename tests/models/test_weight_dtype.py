"""What weights are held in: half the memory where they do not train, and the same bits."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.model import Attention, LoraConfig, ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE, Placement, Whole
from alignment.distributed.precision import autocast
from alignment.distributed.sharded import placement_of
from alignment.models.layout import settle_layout
from alignment.models.load import (
    load_frozen_language_model,
    load_frozen_reward_model,
    load_language_model,
    load_scalar_model,
    save_model,
)
from alignment.models.readout import sequence_scores, token_logprobs
from alignment.models.scalar_head import scalar_head
from alignment.models.weight_dtype import forwards_in_float32, made_in
from alignment.rl.reference import FrozenCopy, build_reference

BFLOAT16 = DistributedConfig(device=Device.cpu, precision=Precision.bfloat16)
NARROW = placement_of(BFLOAT16)
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2"},  # with biases
    "gemma2": {"model_type": "gemma2", "head_dim": 8},  # scales its embeddings
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
    "gpt2": GPT2,
}


def config(tiny_init: dict[str, Any], kind: str, **more: Any) -> ModelConfig:
    init = KINDS[kind] if kind == "gpt2" else tiny_init | KINDS[kind]
    attention = Attention.eager if kind == "gemma2" else Attention.sdpa
    return ModelConfig(init=init, attention=attention, **more)


def held(model: nn.Module) -> dict[torch.dtype, int]:
    """The weights in each dtype."""
    found: dict[torch.dtype, int] = {}
    for weight in model.parameters():
        found[weight.dtype] = found.get(weight.dtype, 0) + weight.numel()
    return found


def num_bytes(model: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


@pytest.fixture
def batch() -> Batch:
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, 2000, count).astype(np.int32)

    examples = [
        Example(ids(prompt), (ids(first), ids(second)), None, Source("rows.jsonl", 1), (True, True))
        for prompt, first, second in [(7, 5, 9), (4, 3, 3)]
    ]
    return pack(examples, [0, 1], layout=Layout.separate, pad_id=0)


@torch.no_grad()
def read(model: Any, batch: Batch) -> Tensor:
    model.eval()
    with autocast(BFLOAT16):
        return token_logprobs(model, batch)


def test_a_base_of_7b_takes_two_bytes_a_weight() -> None:
    """Llama 2's: 6.74 billion weights, of which the embeddings (131 million) and the norms stay in float32."""
    size = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    with torch.device("meta"), made_in(torch.bfloat16):
        hf = LlamaForCausalLM(LlamaConfig(vocab_size=32_000, **size))
    assert sum(weight.numel() for weight in hf.parameters()) == 6_738_415_616
    norms = 65 * 4096
    assert held(hf)[torch.float32] == 32_000 * 4096 + norms
    assert num_bytes(hf) == 2 * 6_738_415_616 + 2 * (32_000 * 4096 + norms) < 14e9


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_model_gives_the_bits_of_one_in_float32(
    kind: str, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch, tmp_path: Path
) -> None:
    """Read from its folder straight into what it is held in; a mixture's experts compute in what they are held in."""
    settings = config(tiny_init, kind)
    torch.manual_seed(0)
    save_model(load_language_model(settings, tokenizer, WHOLE), tokenizer, tmp_path)
    settings = ModelConfig(path=str(tmp_path), attention=settings.attention)
    wide = load_language_model(settings, tokenizer, WHOLE)
    narrow = load_frozen_language_model(settings, tokenizer, NARROW)
    assert held(wide).keys() == {torch.float32} and torch.bfloat16 in held(narrow)
    assert not any(weight.requires_grad for weight in narrow.parameters()) and not narrow.training
    for (name, own), other in zip(narrow.named_parameters(), wide.parameters(), strict=True):
        is_product = own.ndim > 1 and not any(part in name for part in ("embed", "wte", "wpe", "mlp.gate.weight"))
        assert own.dtype == (torch.bfloat16 if is_product else torch.float32), name
        assert torch.equal(own, other.to(own.dtype))
    assert sum(held(narrow).values()) == sum(held(wide).values())  # what is tied is tied
    far = (read(narrow, batch) - read(wide, batch)).abs().max()
    assert far == 0 if kind != "mixtral" else far < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_of_a_policy_is_the_policy_to_the_last_bit(
    kind: str, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch
) -> None:
    torch.manual_seed(0)
    policy = load_language_model(config(tiny_init, kind), tokenizer, NARROW)
    reference = build_reference(policy)
    assert isinstance(reference, FrozenCopy)
    assert held(policy).keys() == {torch.float32} and torch.bfloat16 in held(reference.model)
    own = {id(weight) for weight in policy.parameters()}
    assert not any(id(weight) in own or weight.requires_grad for weight in reference.model.parameters())
    with autocast(BFLOAT16):
        assert torch.equal(reference.logprobs(batch, 1.0), read(policy, batch))


def test_an_adapter_is_float32_on_a_base_that_is_not(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch
) -> None:
    torch.manual_seed(0)
    policy = load_language_model(config(tiny_init, "llama", lora=LoraConfig(rank=4)), tokenizer, NARROW)
    trained = policy.trained()
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert all(".lora_" in name for name in trained)
    frozen = [weight for name, weight in policy.named_parameters() if name not in trained and weight.ndim > 1]
    assert {weight.dtype for weight in frozen if weight.shape[0] != 2048} == {torch.bfloat16}
    with autocast(BFLOAT16):
        before, reference = read(policy, batch), build_reference(policy).logprobs(batch, 1.0)
        assert torch.equal(before, reference)
        token_logprobs(policy, batch).sum().backward()
    assert {weight.grad.dtype for weight in trained.values() if weight.grad is not None} == {torch.float32}
    assert sum(float(weight.grad.abs().sum()) for weight in trained.values() if weight.grad is not None) > 0


def test_scores_of_a_frozen_reward_model_are_not_rounded(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch, tmp_path: Path
) -> None:
    save_model(load_scalar_model(config(tiny_init, "llama"), tokenizer, WHOLE), tokenizer, tmp_path)
    scores = []
    for load, placement in ((load_scalar_model, WHOLE), (partial(load_frozen_reward_model, key="reward.path"), NARROW)):
        model = load(ModelConfig(path=str(tmp_path)), tokenizer, placement)
        model.eval()
        assert scalar_head(model.hf).weight.dtype == torch.float32
        with torch.no_grad(), autocast(BFLOAT16):
            scores.append(sequence_scores(model, batch))
    assert torch.equal(*scores)
    assert scores[0].dtype == torch.float32 and not torch.equal(scores[0], scores[0].bfloat16().float())


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_answers_as_if_it_were_float32(
    kind: str, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Which layout it takes and whether its last feed-forward reads apart."""
    answers = []
    for placement in (WHOLE, NARROW):
        torch.manual_seed(0)
        model = load_frozen_language_model(config(tiny_init, kind), tokenizer, placement)
        answers.append((settle_layout(model, Layout.auto), model.reads_apart))
    assert answers[0] == answers[1]


def test_asked_it_computes_in_float32_and_is_itself_again(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = load_frozen_language_model(config(tiny_init, "llama"), tokenizer, NARROW)
    rounded = AutoModelForCausalLM.from_config(model.hf.config, dtype=torch.float32)
    rounded.load_state_dict({name: weight.float() for name, weight in model.hf.state_dict().items()})
    before, ids = held(model), torch.tensor([[5, 6, 7]])
    with torch.no_grad(), forwards_in_float32(model, WHOLE):
        assert torch.equal(model.hf(ids).logits, rounded.eval()(ids).logits)
    assert held(model) == before

    class Broken(Exception):
        pass

    def fail(*_: Any) -> None:
        raise Broken

    hook = model.hf.model.layers[0].mlp.down_proj.register_forward_hook(fail)
    with pytest.raises(Broken), torch.no_grad(), forwards_in_float32(model, WHOLE):
        model.hf(ids)
    hook.remove()
    assert held(model) == before
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        model.hf(ids)  # the hooks are gone


@pytest.mark.parametrize("placement", [WHOLE, Whole(torch.float32), placement_of(DistributedConfig(device=Device.cpu))])
def test_in_float32_everything_is_float32(
    placement: Placement, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    frozen = load_frozen_language_model(config(tiny_init, "llama"), tokenizer, placement)
    adapted = load_language_model(config(tiny_init, "llama", lora=LoraConfig(rank=2)), tokenizer, placement)
    assert held(frozen).keys() == held(adapted).keys() == {torch.float32}

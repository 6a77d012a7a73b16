"""LoRA: nothing at first, off is the base, merged is on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE, Whole
from alignment.models.adapters import adapter_off, lora_layers, merged_state
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.models.merged_base import merge_and_begin
from alignment.models.readout import sequence_scores, token_logprobs
from alignment.rl.reference import AdapterOff, FrozenCopy, build_reference

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
PROMPT, REPLY = [5, 6, 7, 8], [9, 10, 2]


@pytest.fixture
def batch() -> Batch:
    row = Example(np.array(PROMPT), (np.array(REPLY),), None, Source("rows.jsonl", 1), (True,))
    return pack([row], [0], layout=Layout.shared, pad_id=0)


@pytest.fixture(params=["llama, tied", "llama", "gpt2"])
def init(request: pytest.FixtureRequest, tiny_init: dict[str, Any]) -> dict[str, Any]:
    return {"llama, tied": tiny_init | {"tie_word_embeddings": True}, "llama": tiny_init, "gpt2": GPT2}[request.param]


def seeded(load: Any, init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, **lora: Any) -> Any:
    torch.manual_seed(0)
    model = load(ModelConfig(init=init, lora=LoraConfig(**lora)), tokenizer, WHOLE)
    return model


def stir(model: nn.Module) -> None:
    """Give the adapter weights that do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def logprobs(model: nn.Module, batch: Batch) -> Tensor:
    return token_logprobs(model, batch)


def test_a_new_adapter_changes_nothing(init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch) -> None:
    base, lora = seeded(load_language_model, init, tokenizer), seeded(load_language_model, init, tokenizer, rank=4)
    torch.testing.assert_close(logprobs(lora, batch), logprobs(base, batch))


def test_only_the_adapter_trains(init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch) -> None:
    model = seeded(load_language_model, init, tokenizer, rank=4)
    token_logprobs(model, batch).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


def test_adapter_off_is_the_base(init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch) -> None:
    base, lora = seeded(load_language_model, init, tokenizer), seeded(load_language_model, init, tokenizer, rank=4)
    stir(lora)
    on = logprobs(lora, batch)
    assert (on - logprobs(base, batch)).abs().max() > 0.01
    with adapter_off(lora.hf):
        torch.testing.assert_close(logprobs(lora, batch), logprobs(base, batch))
    assert torch.equal(logprobs(lora, batch), on)
    assert all(p.requires_grad == (".lora_" in name) for name, p in lora.named_parameters())


def test_the_reference_of_an_adapter_is_its_base(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch
) -> None:
    policy = seeded(load_language_model, tiny_init, tokenizer, rank=4)
    before = logprobs(policy, batch)
    reference = build_reference(policy)
    assert isinstance(reference, AdapterOff)
    stir(policy)
    assert torch.equal(reference.logprobs(batch, 1.0), before)


def test_the_reference_of_an_adapter_that_is_merged_as_it_learns_is_a_frozen_copy(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch
) -> None:
    lora = LoraConfig(rank=4, merge_every=1)
    policy = load_language_model(ModelConfig(init=tiny_init, lora=lora), tokenizer, WHOLE)
    before = logprobs(policy, batch)
    reference = build_reference(policy)
    assert isinstance(reference, FrozenCopy)
    stir(policy)
    learned = logprobs(policy, batch)
    assert torch.equal(reference.logprobs(batch, 1.0), before)
    merge_and_begin(policy, lora.init, torch.Generator().manual_seed(0), WHOLE)
    torch.testing.assert_close(logprobs(policy, batch), learned)
    assert torch.equal(reference.logprobs(batch, 1.0), before) and not torch.allclose(learned, before, atol=1e-3)


def test_the_reference_of_a_whole_model_is_a_frozen_copy(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch
) -> None:
    policy = seeded(load_language_model, tiny_init, tokenizer)
    before = logprobs(policy, batch)
    reference = build_reference(policy)
    assert isinstance(reference, FrozenCopy)
    assert not any(p.requires_grad for p in reference.model.parameters())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    assert torch.equal(reference.logprobs(batch, 1.0), before)
    assert not torch.equal(logprobs(policy, batch), before)
    assert not torch.equal(reference.logprobs(batch, 0.5), before)


def test_saved_model_is_the_base_with_its_adapter_added(
    init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch, tmp_path: Path
) -> None:
    model = seeded(load_language_model, init, tokenizer, rank=4)
    stir(model)
    on = logprobs(model, batch)
    save_model(model, tokenizer, tmp_path)
    assert torch.equal(logprobs(model, batch), on)  # saving does not touch the model
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not lora_layers(plain)
    ids = torch.tensor([PROMPT + REPLY])
    want = plain(ids).logits[0, 3:-1].log_softmax(-1).gather(-1, ids[0, 4:, None])[:, 0]
    torch.testing.assert_close(on, want, rtol=1e-5, atol=1e-5)
    again = load_language_model(ModelConfig(path=str(tmp_path)), tokenizer, WHOLE)
    torch.testing.assert_close(logprobs(again, batch), on, rtol=1e-5, atol=1e-5)


def test_a_scalar_head_is_trained_in_full_beside_the_adapter(
    init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch, tmp_path: Path
) -> None:
    model = seeded(load_scalar_model, init, tokenizer, rank=4)
    assert {name for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name} == {
        "hf.score.weight"
    }
    stir(model)
    with torch.no_grad():
        on = sequence_scores(model, batch)
    save_model(model, tokenizer, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(torch.tensor([PROMPT + REPLY])).logits[:, 0], on, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_reaches_the_adapter(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch
) -> None:
    """With all weights frozen, checkpointed layers would see no input that needs a gradient."""
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = ModelConfig(init=tiny_init, lora=LoraConfig(rank=4), gradient_checkpointing=checkpointing)
        model = load_language_model(config, tokenizer, WHOLE).train()
        stir(model)
        token_logprobs(model, batch).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize(
    ("model", "targets", "line"),
    [
        (
            "llama",
            ["q_prj", "v_proj"],
            r"a LlamaForCausalLM has no 'q_prj' \(did you mean 'q_proj'\?\), got \['q_prj', ",
        ),
        (
            "llama",
            ["q_proj", "c_attn"],
            "no 'c_attn'; its linear layers are down_proj, .*q_proj, up_proj, v_proj, got ",
        ),
        ("llama", ["layers.9.self_attn.q_proj"], "no 'layers.9.self_attn.q_proj'"),
        (
            "gpt2",
            ["wide"],
            "a GPT2LMHeadModel has no 'wide'; its linear layers are c_attn, c_fc, c_proj, lm_head, ",
        ),
    ],
)
def test_each_target_is_a_module(
    model: str, targets: list[str], line: str, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    """peft refuses a list of which none is, and leaves out the others."""
    init = {"llama": tiny_init, "gpt2": GPT2}[model]
    with pytest.raises(ConfigError, match=rf"^model\.lora\.targets must each be modules of the model, and .*{line}"):
        seeded(load_language_model, init, tokenizer, rank=4, targets=targets)


@pytest.mark.parametrize(
    ("targets", "rule"),
    [
        (["q_proj", ""], r"must each be modules of the model, and a \w+ has no ''; its linear layers are "),
        (["self_attn"], "must each be linear layers .*, and 'self_attn' is a LlamaAttention; its linear layers are "),
        (["q_proj", "input_layernorm"], "must each be linear layers .*, and 'input_layernorm' is a LlamaRMSNorm; "),
        (["0"], "must each be linear layers .*, and '0' is a LlamaDecoderLayer; "),
        (["embed_tokens"], "must each be linear layers .*, and 'embed_tokens' is an? Embedding; "),
        (["q_proj", "score"], "must leave out 'score', the scalar head, which is trained whole, got "),
        (["all-linear", "q_proj"], r"must be \[all-linear\] alone or names of modules, got "),
    ],
)
def test_a_target_that_would_have_no_adapter_is_refused(
    targets: list[str], rule: str, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.lora\.targets {rule}"):
        seeded(load_scalar_model, tiny_init, tokenizer, rank=4, targets=targets)


def test_targets_name_the_modules(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    model = seeded(load_language_model, tiny_init, tokenizer, rank=4, targets=["q_proj", "v_proj"])
    assert len(lora_layers(model.hf)) == 4  # of two layers
    everything = seeded(load_language_model, tiny_init, tokenizer, rank=4)
    assert len(lora_layers(everything.hf)) == 14  # seven a layer, and not the head of the vocabulary


@pytest.mark.parametrize("above", [0, 1])
def test_a_rank_that_adds_nothing_is_told(
    above: int, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tiny_init["hidden_size"]
    seeded(load_language_model, tiny_init, tokenizer, rank=full + above)
    said = " ".join(capsys.readouterr().out.split())
    told = f"WARNING: model.lora.rank={full + 1} is more than {full}, the full rank of the widest layer"
    assert (told in said) == bool(above) and ("WARNING" in said) == bool(above)


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
MIXTURES: dict[str, tuple[dict[str, Any], set[str], str]] = {  # its settings, what has adapters, a layer of its router
    "mixtral": ({"num_local_experts": 4, "num_experts_per_tok": 2}, ATTENTION, "gate"),
    "qwen3_moe": ({"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}, ATTENTION, "gate"),
    "phimoe": ({"num_local_experts": 4, "num_experts_per_tok": 2}, ATTENTION, "router"),
    "ernie4_5_moe": ({"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16}, ATTENTION, "gate"),
    "longcat_flash": (
        {"num_layers": 2, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2, "ffn_hidden_size": 48}
        | {"expert_ffn_hidden_size": 16, "head_dim": 8, "hidden_size": 32, "num_attention_heads": 4, **LATENT},
        {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
        "classifier",
    ),
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_experts_of_a_mixture_are_left_as_they_are(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are one tensor for all, and no linear layer: adapters are on the attention's, which is said. Routers have
    none either."""
    more, attention, router = MIXTURES[kind]
    init = {**({} if kind == "longcat_flash" else tiny_init), **more, "model_type": kind}
    model = seeded(load_language_model, init, tokenizer, rank=4)
    trained = {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == attention
    assert "the experts of this mixture and its routers are frozen" in " ".join(capsys.readouterr().out.split())
    experts = "not found" if kind == "phimoe" else "must be linear layers .* got the experts or routers"
    with pytest.raises(ConfigError, match=rf"^model\.lora\.targets.* {experts}"):
        seeded(load_language_model, init, tokenizer, rank=4, targets=["w1", "w2", "w3", "gate_proj", "up_proj"])
    with pytest.raises(ConfigError, match=r"^model\.lora\.targets must be linear layers .* got the experts or routers"):
        seeded(load_language_model, init, tokenizer, rank=4, targets=["o_proj", router])


def test_a_weight_of_two_names_is_copied_once(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's, which is the embeddings', and is as large as they are."""
    copied: list[int] = []

    def kept(self: Whole, weight: Tensor) -> Tensor:
        copied.append(weight.data_ptr())
        return weight.detach().clone()

    monkeypatch.setattr(Whole, "kept", kept)
    model = seeded(load_language_model, tiny_init | {"tie_word_embeddings": True}, tokenizer, rank=4)
    state = merged_state(model.hf, WHOLE)
    head, embeddings = (module.weight.data_ptr() for module in (model.hf.lm_head, model.hf.get_input_embeddings()))
    assert head == embeddings and copied.count(head) == 1
    assert state["lm_head.weight"] is state["model.embed_tokens.weight"]

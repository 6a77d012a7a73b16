"""Logits in chunks, temperature, entropy; what a training forward may not change."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.distributed.precision import autocast
from alignment.models import heads
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model, load_scalar_model
from alignment.models.logprobs import entropy_of, logprobs_of
from alignment.models.readout import (
    sequence_scores,
    token_logprobs,
    token_logprobs_and_entropy,
    token_logprobs_and_hits,
)


@pytest.fixture
def model(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    torch.manual_seed(0)
    return load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)


@pytest.fixture
def batch() -> Batch:
    rng = np.random.default_rng(0)
    shapes = [(6, 5, 9), (3, 4, 2), (8, 6, 3)]
    drawn = [[rng.integers(3, 2000, n).astype(np.int32) for n in shape] for shape in shapes]
    rows = [Example(ids[0], tuple(ids[1:]), None, Source("rows.jsonl", 1), (True, True)) for ids in drawn]
    return pack(rows, range(3), layout=Layout.shared, pad_id=0)


def gradients(model: torch.nn.Module, values: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    values.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def logits(model: LanguageModel, batch: Batch) -> Tensor:
    """[T, V] float64: what each completion token was drawn from, made without our head."""
    hidden = model.hidden(batch, batch.positions)
    weight: Any = model.hf.get_output_embeddings()
    return (hidden @ weight.weight.T).double()


@pytest.mark.parametrize("chunk", [1, 4, 29, 30])
def test_chunks_change_nothing(model: LanguageModel, batch: Batch, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch.num_tokens == 29
    whole = token_logprobs(model, batch)
    want = gradients(model, whole)
    monkeypatch.setattr(heads, "CHUNK", chunk * model.hf.config.vocab_size)
    cut = token_logprobs(model, batch)
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients(model, cut).items():
        torch.testing.assert_close(gradient, want[name], rtol=1e-5, atol=1e-5 * want[name].abs().max().item())


@pytest.mark.parametrize("chunk", [4, 29])
def test_hits_are_the_tokens_of_the_largest_logits_and_change_neither_log_probs_nor_gradients(
    model: LanguageModel, batch: Batch, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = logits(model, batch).argmax(-1)
    targets = torch.where(torch.arange(29) % 3 == 0, largest, batch.targets)
    batch = replace(batch, targets=targets)
    monkeypatch.setattr(heads, "CHUNK", chunk * model.hf.config.vocab_size)
    alone = token_logprobs(model, batch)
    want = gradients(model, alone)
    logprobs, hits = token_logprobs_and_hits(model, batch)
    assert hits.tolist() == (targets == largest).tolist() and 10 <= hits.sum() < 29
    assert torch.equal(logprobs, alone) and not hits.requires_grad
    for name, gradient in gradients(model, logprobs).items():
        assert torch.equal(gradient, want[name]), name


def test_no_logits_larger_than_a_chunk_exist(
    model: LanguageModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the forward nor, made again, in the backward pass; and they are made again."""
    monkeypatch.setattr(heads, "CHUNK", 8 * model.hf.config.vocab_size)
    sizes: list[int] = []

    def seen(logits: Tensor, *arguments: Any) -> Tensor:
        sizes.append(len(logits))
        return logprobs_of(logits, *arguments)

    monkeypatch.setattr(heads, "logprobs_of", seen)
    logprobs = token_logprobs(model, batch)
    assert sizes == [8, 8, 8, 5]
    logprobs.sum().backward()
    assert sorted(sizes) == sorted([8, 8, 8, 5] * 2)


@pytest.mark.parametrize("chunk", [4, 30])
@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=4, targets=["q_proj", "lm_head"], dropout=0.2)])
def test_the_head_runs_once_whatever_the_number_of_chunks(
    lora: LoraConfig,
    chunk: int,
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So do an adapter's parts; and what its hooks put into its backward pass comes once, around all of it."""
    torch.manual_seed(0)
    model = load_language_model(ModelConfig(init=tiny_init, lora=lora), tokenizer, WHOLE).train()
    monkeypatch.setattr(heads, "CHUNK", chunk * model.hf.config.vocab_size)
    parts = [part for part in model.hf.get_output_embeddings().modules() if list(part.parameters(recurse=False))]
    assert len(parts) == (3 if lora.rank else 1)
    seen: list[str] = []

    class Behind(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, output: Tensor) -> Tensor:
            return output.detach()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            seen.append("backward")
            return gradient

    for part in parts:
        part.register_forward_pre_hook(lambda *_: seen.append("forward"))
        part.register_forward_hook(lambda _part, _inputs, output: tuple(Behind.apply(value) for value in output))
    logprobs = token_logprobs(model, batch)
    assert seen == ["forward"] * len(parts) and all("forward" not in vars(part) for part in parts)
    logprobs.sum().backward()
    assert seen == ["forward"] * len(parts) + ["backward"] * len(parts)
    assert all(p.grad is not None for part in parts for p in part.parameters() if p.requires_grad)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(model: LanguageModel, batch: Batch, temperature: float) -> None:
    want = (logits(model, batch) / temperature).log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    got = token_logprobs(model, batch, temperature=temperature)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_entropy(model: LanguageModel, batch: Batch, temperature: float) -> None:
    logprobs, entropy = token_logprobs_and_entropy(model, batch, temperature=temperature)
    log_p = (logits(model, batch) / temperature).log_softmax(-1)
    torch.testing.assert_close(entropy.double(), -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-5)
    assert not entropy.requires_grad
    torch.testing.assert_close(logprobs, token_logprobs(model, batch, temperature=temperature))


def test_entropy_of_equal_logits_is_log_of_the_vocabulary(model: LanguageModel, batch: Batch) -> None:
    torch.nn.init.zeros_(model.hf.get_output_embeddings().weight)
    _, entropy = token_logprobs_and_entropy(model, batch)
    torch.testing.assert_close(entropy, torch.full_like(entropy, np.log(2048)))


def test_a_token_that_is_ruled_out_adds_nothing_to_the_entropy() -> None:
    ruled_out = torch.tensor([[-torch.inf, 0.0, 1.0], [0.0, -torch.inf, -torch.inf], [torch.nan, 0.0, 1.0]])
    rest = torch.tensor([0.0, 1.0], dtype=torch.float64).log_softmax(-1)
    want = torch.stack([-(rest.exp() * rest).sum(), torch.tensor(0.0), torch.tensor(torch.nan)]).float()
    torch.testing.assert_close(entropy_of(ruled_out, 1.0), want, equal_nan=True)


def test_gradient_checkpointing_changes_nothing(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, model: LanguageModel, batch: Batch
) -> None:
    again = load_language_model(ModelConfig(init=tiny_init, gradient_checkpointing=True), tokenizer, WHOLE)
    again.load_state_dict(model.double().state_dict())  # in float32 a processor may round as its memory lies
    again.double().train()
    calls: list[int] = []
    layer: Any = again.hf.base_model.layers[0].self_attn
    layer.register_forward_hook(lambda *_: calls.append(1))
    want = gradients(model.train(), token_logprobs(model, batch))
    got = gradients(again, token_logprobs(again, batch))
    assert len(calls) == 2  # it did checkpoint
    assert got.keys() == want.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], rtol=1e-6, atol=1e-6)


def test_bfloat16_is_near(model: LanguageModel, batch: Batch) -> None:
    exact = token_logprobs(model, batch)
    want = gradients(model, exact)
    with autocast(DistributedConfig(device=Device.cpu, precision=Precision.bfloat16)):
        rough = token_logprobs(model, batch)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.3)
    got = gradients(model, rough)
    flat = [torch.cat([g.flatten() for g in grads.values()]) for grads in (got, want)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99
    assert all(gradient.dtype == torch.float32 for gradient in got.values())


NOISY = [
    ({"attention_dropout": 0.5}, {}),
    ({}, {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4, "resid_pdrop": 0.5, "attn_pdrop": 0.5}),
    ({}, {"model_type": "opt", "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
          "word_embed_proj_dim": 32, "dropout": 0.5}),
    ({}, {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
          "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "router_jitter_noise": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("added", "other"), NOISY)
def test_two_training_forwards_are_the_same(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, batch: Batch, added: dict, other: dict
) -> None:
    """Whatever a model's config says of dropout: PPO's ratio must be 1 before the first step."""
    for load, read_out in ((load_language_model, token_logprobs), (load_scalar_model, sequence_scores)):
        model = load(ModelConfig(init=other or {**tiny_init, **added}), tokenizer, WHOLE).train()
        assert torch.equal(read_out(model, batch), read_out(model, batch))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (
            "bert",
            r"^model\.init must be a model whose scores are .*, got BertForSequenceClassification$",
        ),  # of the first token's state, through a pooler
        ("roberta", "one linear layer, got a RobertaForSequenceClassification"),
    ],
)
def test_a_model_without_a_scalar_head_is_refused(tokenizer: PreTrainedTokenizerBase, kind: str, why: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    with pytest.raises(ConfigError, match=why):
        load_scalar_model(ModelConfig(init={"model_type": kind, **sizes}), tokenizer, WHOLE)


@pytest.mark.parametrize(
    ("init", "why"),
    [
        ({"model_type": "bert", "is_decoder": True}, r"^model\.init must .* whose logits are .*, got BertLMHeadModel$"),
        ({"model_type": "hyperclovax", "num_key_value_heads": 4, "logits_scaling": 3.0}, "logits are .* HyperCLOVAX"),
        ({"model_type": "bert"}, r"^model\.init must be a model that writes, .* got BertLMHeadModel, an encoder"),
        ({"model_type": "bert-generation"}, "got BertGenerationDecoder, an encoder whose tokens see all: take a dec"),
    ],
)
def test_logits_that_are_not_ours_to_make_are_refused(
    tokenizer: PreTrainedTokenizerBase, init: dict[str, Any], why: str
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    with pytest.raises(ConfigError, match=why):
        load_language_model(ModelConfig(init={**sizes, **init}), tokenizer, WHOLE)

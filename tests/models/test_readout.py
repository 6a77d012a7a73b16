"""Every read-out and its every gradient: shared layout == separate layout == one text at a time through transformers.

Prompts and completions are longer than the sliding windows, and all prompts share a row.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.model import Attention, LoraConfig, ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.load import load_language_model, load_scalar_model
from alignment.models.readout import (
    prompt_and_completion_logprobs,
    sequence_scores,
    token_logprobs,
    token_values,
)

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "initializer_range": 0.2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **GROUPED},
    "mistral, window 5": {"model_type": "mistral", "sliding_window": 5, **GROUPED},
    "qwen2": {"model_type": "qwen2", **GROUPED},
    "qwen2, window 5 in one layer": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        **GROUPED,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 8, **GROUPED},
    "gemma": {"model_type": "gemma", "head_dim": 8, **GROUPED},
    "gemma2, window 5": {"model_type": "gemma2", "head_dim": 8, "sliding_window": 5, **GROUPED},
    "gemma3, window 5": {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 5, **GROUPED},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "phi": {"model_type": "phi", "initializer_range": 0.2, **SIZES},
    "phi3, window 5": {"model_type": "phi3", "sliding_window": 5, **GROUPED},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, **GROUPED},
    "granite": {"model_type": "granite", "logits_scaling": 3.0, **GROUPED},
    "cohere": {"model_type": "cohere", "logit_scale": 0.3, **GROUPED},
}
EAGER_ONLY = {"gemma2, window 5"}  # its attention caps scores, which torch's kernel cannot do
CASES = [
    (name, attention)
    for name in FAMILIES
    for attention in (Attention.sdpa, Attention.eager)
    if attention is Attention.eager or name not in EAGER_ONLY
]
TOLERANCE = 1e-5
ReadOut = Callable[[nn.Module, Batch], Tensor]


def examples() -> list[Example]:
    """Texts of 7 + (5, 9), 3 + (4, 2), 12 + (9, 9) tokens."""
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, 96, count).astype(np.int32)

    shapes = [(7, 5, 9), (3, 4, 2), (12, 9, 9)]
    return [Example(ids(p), (ids(a), ids(b)), None, Source("rows.jsonl", 1), (True, True)) for p, a, b in shapes]


def config(name: str, attention: Attention) -> ModelConfig:
    return ModelConfig(init=FAMILIES[name], attention=attention)


def in_layout(layout: Layout) -> Batch:
    batch = pack(examples(), range(3), layout=layout, pad_id=0)
    assert layout is Layout.separate or batch.groups[0].unique().numel() == 3
    return batch


def texts() -> list[tuple[Tensor, int]]:
    """[1, L] ids of each prompt with each of its completions, and the prompt's length."""
    return [
        (
            torch.from_numpy(np.concatenate([example.prompt_ids, completion]).astype(np.int64))[None],
            len(example.prompt_ids),
        )
        for example in examples()
        for completion in example.completion_ids
    ]


def plain_logprobs(model: LanguageModel) -> Tensor:
    """[T], one text at a time through the whole transformers model, without mask, positions or padding."""
    pieces = []
    for ids, start in texts():
        logprobs = model.hf(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
        pieces.append(logprobs.gather(-1, ids[0, start:, None])[:, 0])
    return torch.cat(pieces)


def plain_values(model: ScalarModel) -> Tensor:
    score: Any = model.hf.score
    hidden = [model.hf.base_model(input_ids=ids, use_cache=False).last_hidden_state for ids, _ in texts()]
    return torch.cat([score(h)[0, start - 1 : -1, 0] for h, (_, start) in zip(hidden, texts(), strict=True)])


def plain_scores(model: ScalarModel) -> Tensor:
    return torch.cat([model.hf(input_ids=ids, use_cache=False).logits[:, 0] for ids, _ in texts()])


def with_gradients(model: nn.Module, values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The values, and the gradients of a sum of them with fixed uneven weights."""
    model.zero_grad(set_to_none=True)
    weights = torch.randn(len(values), generator=torch.Generator().manual_seed(1))
    (values * weights).sum().backward()
    return values.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: tuple[Tensor, dict[str, Tensor]], want: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Values and every gradient, relative to the largest entry of each."""
    assert got[1].keys() == want[1].keys()
    for name, value, wanted in [("values", got[0], want[0]), *((n, got[1][n], want[1][n]) for n in want[1])]:
        scale = wanted.abs().max().clamp(min=1e-6)
        error = ((value - wanted).abs().max() / scale).item()
        assert error < TOLERANCE, f"{name} differs by {error:.1e}"


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_token_logprobs(tokenizer: PreTrainedTokenizerBase, name: str, attention: Attention, layout: Layout) -> None:
    torch.manual_seed(0)
    model = load_language_model(config(name, attention), tokenizer, WHOLE).train()
    want = with_gradients(model, plain_logprobs(model))
    assert want[0].std() > 0.1 and len(want[1]) == len(list(model.parameters()))
    assert_same(with_gradients(model, token_logprobs(model, in_layout(layout))), want)


@pytest.mark.parametrize(("name", "attention"), [case for case in CASES if case[1] is not Attention.eager])
def test_token_logprobs_of_an_adapter(tokenizer: PreTrainedTokenizerBase, name: str, attention: Attention) -> None:
    """LoRA away from its start where it is nothing: the adapter's gradients, and no others."""
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj"] if name == "mixtral" else ["all-linear"]  # experts are no linear layers
    lora = LoraConfig(rank=2, targets=targets)
    model = load_language_model(replace(config(name, attention), lora=lora), tokenizer, WHOLE).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.1)
    want = with_gradients(model, plain_logprobs(model))
    assert want[1].keys() == trained.keys() and all("lora_" in name for name in trained)
    for layout in (Layout.shared, Layout.separate):
        assert_same(with_gradients(model, token_logprobs(model, in_layout(layout))), want)


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
@pytest.mark.parametrize(("name", "attention"), [case for case in CASES if case[0] not in ("granite", "cohere")])
def test_values_and_scores(tokenizer: PreTrainedTokenizerBase, name: str, attention: Attention, layout: Layout) -> None:
    torch.manual_seed(0)
    model = load_scalar_model(config(name, attention), tokenizer, WHOLE).train()
    batch = in_layout(layout)
    for plain, read_out in ((plain_values, token_values), (plain_scores, sequence_scores)):
        want = with_gradients(model, plain(model))
        assert_same(with_gradients(model, read_out(model, batch)), want)


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_prompt_logprobs(tokenizer: PreTrainedTokenizerBase, layout: Layout) -> None:
    torch.manual_seed(0)
    model = load_language_model(config("llama", Attention.sdpa), tokenizer, WHOLE)
    batch = in_layout(layout)
    with torch.no_grad():
        prompt, completion = prompt_and_completion_logprobs(model, batch)
        whole = []
        for ids, start in texts()[::2]:
            logprobs = model.hf(input_ids=ids).logits[0].log_softmax(-1)
            whole.append(logprobs[: start - 1].gather(-1, ids[0, 1:start, None])[:, 0])
        torch.testing.assert_close(prompt, torch.cat(whole), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(completion, token_logprobs(model, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
@pytest.mark.parametrize("pad_id", [0, 2, 50])
def test_score_is_read_at_the_last_real_token_whatever_the_pad(
    tokenizer: PreTrainedTokenizerBase, layout: Layout, pad_id: int
) -> None:
    """pad 2 is the EOS that every completion here ends with: its score is the EOS's, not that of what precedes it."""
    torch.manual_seed(0)
    model = load_scalar_model(config("llama", Attention.sdpa), tokenizer, WHOLE)
    rows = [
        Example(e.prompt_ids, tuple(np.append(c, np.int32(2)) for c in e.completion_ids), None, e.source, e.finished)
        for e in examples()
    ]
    batch = pack(rows, range(3), layout=layout, pad_id=pad_id)
    ends = torch.tensor([[2]])
    score: Any = model.hf.score
    with torch.no_grad():
        one_by_one = [model.hf.base_model(input_ids=torch.cat([ids, ends], 1)).last_hidden_state for ids, _ in texts()]
        want = torch.stack([score(hidden)[0, -1, 0] for hidden in one_by_one])
        torch.testing.assert_close(sequence_scores(model, batch), want, rtol=1e-5, atol=1e-5)

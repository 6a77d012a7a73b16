"""All texts of a row in one call a layer: the sequences by hand, and as attention group by group reads and learns."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.model import Attention, ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.models import varlen
from alignment.models.branches import branch_rule
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model, load_scalar_model
from alignment.models.readout import sequence_scores, token_logprobs
from alignment.models.varlen import Ways, attend, sequences_of, serves, window_mark
from tests.models.test_readout import EAGER_ONLY, FAMILIES
from tests.models.varlen_reference import on_a_cpu

ONE_CALL = [name for name in FAMILIES if name not in EAGER_ONLY]
SHAPES = {1: [(7, 5), (3, 4), (12, 1)], 2: [(7, 5, 9), (3, 4, 2), (1, 9, 9)], 4: [(6, 5, 1, 2, 8), (9, 3, 3, 3, 3)]}


def packed(shapes: list[tuple[int, ...]]) -> Batch:
    rng = np.random.default_rng(0)
    rows = []
    for shape in shapes:
        prompt, *completions = [rng.integers(3, 96, length).astype(np.int32) for length in shape]
        finished = (True,) * len(completions)
        rows.append(Example(prompt, tuple(completions), None, Source("rows.jsonl", 1), finished))
    return pack(rows, range(len(rows)), layout=Layout.shared, pad_id=0)


@pytest.fixture
def one_call(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A CPU that has the kernels, in any precision; how many sequences each call had."""
    calls: list[int] = []
    torchs_own: Any = varlen.varlen_attn

    def counted(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, *rest: Any, **settings: Any) -> Tensor:
        calls.append(len(ends) - 1)
        return torchs_own(q, k, v, ends, *rest, **settings)

    monkeypatch.setattr(varlen, "varlen_attn", counted)
    monkeypatch.setattr(varlen, "DEVICES", ("cpu",))
    monkeypatch.setattr(varlen, "DTYPES", (torch.float32, torch.bfloat16))
    with on_a_cpu():
        yield calls


def test_sequences_by_hand() -> None:
    """A prompt of 2 with branches of 2, 1 and 3; a prompt of 1 with branches of 1, 2 and 1."""
    made = sequences_of(packed([(2, 2, 1, 3), (1, 1, 2, 1)]))
    assert made.query_ends.tolist() == [0, 4, 5, 8, 10, 12, 13]
    assert made.key_ends.tolist() == [0, 4, 7, 12, 14, 17, 19]
    assert made.longest == (4, 5)
    assert made.keys is not None
    assert made.keys.tolist() == [0, 1, 2, 3, 0, 1, 4, 0, 1, 5, 6, 7, 8, 9, 8, 10, 11, 8, 12]
    assert made.own.tolist() == [0, 1, 2, 3, 6, 9, 10, 11, 12, 13, 15, 16, 18]
    assert (made.prompts.tolist(), made.copies.tolist()) == ([0, 1, 8], [[4, 7], [5, 8], [14, 17]])


def test_one_completion_a_prompt_is_the_row_as_it_is() -> None:
    made = sequences_of(packed([(2, 2), (3, 1)]))
    assert made.keys is None and made.copies.shape == (5, 0)
    assert made.query_ends.tolist() == made.key_ends.tolist() == [0, 4, 8]


def learned(model: nn.Module, values: Tensor) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    (values * torch.arange(1, len(values) + 1).sin()).sum().backward()
    return [values.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_same(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    assert len(got) == len(want) > 1
    for value, wanted in zip(got, want, strict=True):
        assert ((value - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9)) < tolerance


def loaded(
    name: str, tokenizer: PreTrainedTokenizerBase, attention: Attention = Attention.auto, **more: Any
) -> LanguageModel:
    torch.manual_seed(0)
    init = {**FAMILIES[name], **more}
    return load_language_model(ModelConfig(init=init, attention=attention), tokenizer, WHOLE).train()


@pytest.mark.parametrize("replies", SHAPES)
@pytest.mark.parametrize("name", ONE_CALL)
def test_one_call_a_layer_reads_and_learns_as_group_by_group(
    name: str, replies: int, tokenizer: PreTrainedTokenizerBase, one_call: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = packed(SHAPES[replies])
    model = loaded(name, tokenizer)
    got = learned(model, token_logprobs(model, batch))
    assert one_call == [replies * len(SHAPES[replies])] * 2
    monkeypatch.setattr(varlen, "DEVICES", ())
    assert_same(got, learned(model, token_logprobs(model, batch)), 1e-5)
    assert len(one_call) == 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_scores_and_checkpointed_layers(
    checkpointing: bool, tokenizer: PreTrainedTokenizerBase, one_call: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    init = FAMILIES["mistral, window 5"]
    config = ModelConfig(init=init, gradient_checkpointing=checkpointing)
    model = load_scalar_model(config, tokenizer, WHOLE).train()
    batch = packed(SHAPES[2])
    got = learned(model, sequence_scores(model, batch))
    assert len(one_call) == (4 if checkpointing else 2)
    monkeypatch.setattr(varlen, "DEVICES", ())
    assert_same(got, learned(model, sequence_scores(model, batch)), 1e-5)


def test_under_autocast_the_kernel_has_halves(
    tokenizer: PreTrainedTokenizerBase, one_call: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a prompt's gradient is summed over its copies as exactly as group by group."""
    monkeypatch.setattr(varlen, "DTYPES", (torch.bfloat16,))
    batch, model = packed(SHAPES[4]), loaded("llama", tokenizer)
    exact = learned(model, token_logprobs(model, batch))
    assert not one_call  # float32 is not the kernel's
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = token_logprobs(model, batch)
    assert len(one_call) == 2
    assert_same(learned(model, got), exact, 0.1)


@pytest.mark.parametrize(("size", "width"), [(8, 8), (12, 12), (24, 16), (16, 24), (5, 3)])
def test_heads_of_any_size(size: int, width: int, one_call: list[int]) -> None:
    """Sizes that are no multiple of eight, and values of another size than keys: by hand, in float64."""
    batch = packed([(2, 3, 2)])
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 7, size, dtype=torch.float64, generator=generator) for heads in (4, 2))
    v = torch.randn(1, 2, 7, width, dtype=torch.float64, generator=generator)
    out, _ = attend(nn.Identity(), q, k, v, window_mark(None), Ways(sequences_of(batch), None))
    order = torch.arange(7)
    seen = branch_rule(batch)(0, 0, order[:, None], order[None, :])
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
    torch.testing.assert_close(out, want.transpose(1, 2))


def test_which_models_and_devices_it_serves() -> None:
    hf = AutoConfig.for_model("llama", hidden_size=64, num_attention_heads=4)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert not serves(hf, cuda)  # in float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not serves(hf, cpu)
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        assert serves(hf, cuda)
        assert not serves(AutoConfig.for_model("gemma", head_dim=264), cuda)
        assert not serves(AutoConfig.for_model("llama", hidden_size=1024, num_attention_heads=2, head_dim=None), cuda)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)


def test_sdpa_and_eager_that_are_asked_for_stay_group_by_group(
    tokenizer: PreTrainedTokenizerBase, one_call: list[int]
) -> None:
    for chosen in (Attention.sdpa, Attention.eager):
        token_logprobs(loaded("llama", tokenizer, attention=chosen), packed(SHAPES[2]))
    assert not one_call


def test_what_the_kernel_has_no_place_for_is_refused() -> None:
    made, ways = torch.zeros(1, 1, 4, 8), Ways(sequences_of(packed([(2, 2)])), None)
    with pytest.raises(ConfigError, match=r"^model\.attention must be eager or sdpa where a Identity gives position_b"):
        attend(nn.Identity(), made, made, made, window_mark(None), ways, position_bias=made)


def test_a_batch_knows_its_branches_in_the_shared_layout_alone() -> None:
    batch = packed([(2, 3, 4)])
    assert batch.branch_lengths == ((2, 3, 4),) and batch.shared
    assert not replace(batch, branch_lengths=()).shared

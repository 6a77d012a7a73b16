"""The branch mask by hand, and which architectures it can serve."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.model import Attention, ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.models import attention
from alignment.models.attention import attention_inputs, group_masks, plain_rows
from alignment.models.branches import branch_rule
from alignment.models.heads import LanguageModel
from alignment.models.layer_kinds import layer_kinds, sliding_window
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs
from alignment.models.whole_row import in_fixed_lengths


def example(prompt: int, *completions: int) -> Example:
    ids = [np.arange(3, 3 + n, dtype=np.int32) for n in (prompt, *completions)]
    return Example(ids[0], tuple(ids[1:]), None, Source("rows.jsonl", 1), (True,) * len(completions))


def drawn(mask: torch.Tensor) -> list[str]:
    return ["".join("x" if seen else "." for seen in row) for row in mask.tolist()]


def packed(*examples: Example, layout: Layout = Layout.shared) -> Batch:
    return pack(examples, range(len(examples)), layout=layout, pad_id=0)


def whole_mask(batch: Batch, window: int | None = None) -> torch.Tensor:
    order = torch.arange(batch.input_ids.shape[1])
    return branch_rule(batch, window)(0, 0, order[:, None], order[None, :])


def test_branch_mask_by_hand() -> None:
    """A prompt of 2, branches of 2 and 1; a second group with a prompt of 1 and two branches of 1."""
    batch = packed(example(2, 2, 1), example(1, 1, 1))
    assert drawn(whole_mask(batch)) == [
        "x.......",
        "xx......",
        "xxx.....",
        "xxxx....",
        "xx..x...",
        ".....x..",
        ".....xx.",
        ".....x.x",
    ]


def test_group_masks_are_the_blocks_of_the_whole_mask() -> None:
    batch = packed(example(2, 2, 1), example(1, 1, 1))
    first, second = group_masks(batch)[0, 0, 0].split([25, 9])
    whole = whole_mask(batch)
    assert torch.equal(first.view(5, 5), whole[:5, :5])
    assert torch.equal(second.view(3, 3), whole[5:, 5:])
    assert not whole[5:, :5].any()


def test_window_is_the_distance_within_the_branch_s_own_text() -> None:
    """Prompt 3, branches of 2 and 3, window 3: the second branch is as far from the prompt as the first."""
    assert drawn(whole_mask(packed(example(3, 2, 3)), window=3)) == [
        "x.......",
        "xx......",
        "xxx.....",
        ".xxx....",
        "..xxx...",
        ".xx..x..",
        "..x..xx.",
        ".....xxx",
    ]


def config(kind: str, **settings: object) -> AutoConfig:
    made = AutoConfig.for_model(kind, **settings)
    made._attn_implementation = "grouped_sdpa"
    return made


def test_separate_rows_need_no_mask() -> None:
    batch = packed(example(2, 2, 1), layout=Layout.separate)
    assert attention_inputs(batch, config("llama")) == {"attention_mask": None}
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 2  # padding too, or it were taken for another text


def test_one_plain_text_a_group_needs_no_mask_of_sdpa() -> None:
    batch = packed(example(2, 2), example(3, 4))
    assert attention_inputs(batch, config("llama"))["attention_mask"].numel() == 0
    assert attention_inputs(batch, config("mistral", sliding_window=7))["attention_mask"].numel() == 0
    windowed = attention_inputs(batch, config("mistral", sliding_window=6))["attention_mask"]
    assert torch.equal(windowed, group_masks(batch, window=6))
    eager = config("llama")
    eager._attn_implementation = "grouped_eager"
    assert torch.equal(attention_inputs(batch, eager)["attention_mask"], group_masks(batch))


def test_a_long_group_needs_a_mask_for_its_other_completions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONG", 8)
    batch = packed(example(3, 2, 3), example(2, 2, 1))
    assert plain_rows(batch) == (5, 0)
    long, short = attention_inputs(batch, config("llama"))["attention_mask"][0, 0, 0].split([3 * 8, 5 * 5])
    assert drawn(long.view(3, 8)) == ["xxx..x..", "xxx..xx.", "xxx..xxx"]
    assert torch.equal(short, group_masks(packed(example(2, 2, 1)))[0, 0, 0])
    mixed = attention_inputs(batch, config("gemma2", sliding_window=3, num_hidden_layers=2))
    assert mixed["plain_rows"] == (5, 0)
    assert mixed["attention_mask"]["full_attention"].numel() == 3 * 8 + 5 * 5
    assert torch.equal(mixed["attention_mask"]["sliding_attention"], group_masks(batch, window=3))


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_a_long_group_reads_as_a_short_one(
    kind: str, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Values and gradients in float64: a prompt and its first completion without a mask, or every row with one."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    kinds = {"layer_types": ["full_attention", "sliding_attention"]} if kind == "gemma3_text" else {}
    init = {"model_type": kind, "num_key_value_heads": 1, "head_dim": 16, **sizes, **kinds}
    init |= {} if kind == "llama" else {"sliding_window": 6}
    model = load_language_model(ModelConfig(init=init), tokenizer, WHOLE).double()
    batch = packed(example(7, 5, 6, 2), example(3, 2, 3, 1), example(1, 9, 1, 4))
    results = []
    for long in (1, 10, 1000):
        monkeypatch.setattr(attention, "LONG", long)
        model.zero_grad()
        logprobs = token_logprobs(model, batch)
        (logprobs * torch.arange(len(logprobs))).sum().backward()
        results.append([logprobs.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for result in results[:2]:
        torch.testing.assert_close(result, results[2], rtol=1e-9, atol=1e-9)


def test_each_kind_of_layer_gets_its_mask() -> None:
    batch = packed(example(3, 2, 3))
    inputs = attention_inputs(batch, config("gemma2", sliding_window=3, num_hidden_layers=2))
    assert inputs["group_lengths"] == (8,)
    assert torch.equal(inputs["attention_mask"]["full_attention"], group_masks(batch))
    assert torch.equal(inputs["attention_mask"]["sliding_attention"], group_masks(batch, window=3))
    mistral = attention_inputs(batch, config("mistral", sliding_window=3))["attention_mask"]
    assert torch.equal(mistral, group_masks(batch, window=3))


def test_rows_of_a_compiled_kernel_come_in_few_lengths() -> None:
    lengths = set()
    for tokens in range(2, 5000, 7):
        batch = packed(example(1, tokens - 1))
        longer = in_fixed_lengths(batch)
        length = longer.input_ids.shape[1]
        assert length >= tokens and length % 128 == 0 and length - tokens < max(128, tokens / 8)
        assert torch.equal(longer.input_ids[0, :tokens], batch.input_ids[0])
        assert (longer.groups[0, tokens:] == -1).all()
        assert not whole_mask(longer)[:tokens, tokens:].any() if tokens < 600 else True
        lengths.add(length)
    assert len(lengths) < 30


@pytest.mark.parametrize("window", [None, 4])
def test_flex_attention_reads_as_sdpa_does(window: int | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Uncompiled, and forward only, for that is what it has on a CPU; tests/gpu compares the gradients."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    init = {"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": window, **sizes}
    sdpa = load_language_model(ModelConfig(init=init), tokenizer, WHOLE)
    flex = deepcopy(sdpa)
    flex.hf.set_attn_implementation("flex_attention")
    batch = packed(example(7, 5, 6), example(3, 2, 3), example(40, 50, 60))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(token_logprobs(flex, batch), token_logprobs(sdpa, batch), rtol=1e-5, atol=1e-5)


def test_a_second_model_of_one_config_keeps_its_own_attention(tokenizer: PreTrainedTokenizerBase) -> None:
    """Wrapping a model says so in its config; what is not wrapped is left as it was."""
    init = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = load_language_model(ModelConfig(init=init, attention=Attention.eager), tokenizer, WHOLE)
    assert model.hf.config._attn_implementation == "grouped_eager"
    assert LanguageModel(model.hf, WHOLE).hf.config._attn_implementation == "grouped_eager"


@pytest.mark.parametrize(
    ("kind", "settings", "window", "kinds"),
    [
        ("llama", {}, None, {"full_attention"}),
        ("mistral", {"sliding_window": 7}, 7, {"sliding_attention"}),
        ("mistral", {"sliding_window": None}, None, {"full_attention"}),
        ("qwen2", {"sliding_window": 7}, None, {"full_attention"}),
        (
            "qwen2",
            {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 2},
            7,
            {"full_attention", "sliding_attention"},
        ),
        ("gemma2", {"sliding_window": 7}, 7, {"full_attention", "sliding_attention"}),
    ],
)
def test_windows_and_kinds(kind: str, settings: dict[str, object], window: int | None, kinds: set[str]) -> None:
    made = config(kind, **settings)
    assert sliding_window(made) == window
    assert set(layer_kinds(made)) == kinds


UNSERVED = {
    "recurrent": {"model_type": "falcon_h1", "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "distance in the row": {"model_type": "gpt_neo", "attention_types": [[["global", "local"], 1]], "window_size": 3},
    "no positions": {"model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 1},
    "linear layers": {"model_type": "minimax", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
}


@pytest.mark.parametrize("why", UNSERVED)
def test_an_architecture_that_branches_would_mislead_is_refused(tokenizer: PreTrainedTokenizerBase, why: str) -> None:
    """Each of them gives other log-probs in the shared layout, or fails in its own words; separate rows serve it."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4, "num_hidden_layers": 2}
    known = AutoConfig.for_model(UNSERVED[why]["model_type"]).to_dict()
    init = {name: size for name, size in sizes.items() if name in known} | UNSERVED[why]
    model = load_language_model(ModelConfig(init=init, attention=Attention.eager), tokenizer, WHOLE)
    with torch.no_grad():
        assert token_logprobs(model, packed(example(3, 2, 2), layout=Layout.separate)).isfinite().all()
        with pytest.raises(ConfigError, match=r"batch\.layout must be separate"):
            token_logprobs(model, packed(example(3, 2, 2)))

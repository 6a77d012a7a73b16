"""The branch mask by hand, and which architectures it can serve."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from alignment.config.parts import ConfigError, ModelConfig
from alignment.config.vocabulary import Attention, Layout
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.models.attention import attention_mask, branch_mask, layer_kinds, sliding_window
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs


def example(prompt: int, *completions: int) -> Example:
    ids = [np.arange(3, 3 + n, dtype=np.int32) for n in (prompt, *completions)]
    return Example(ids[0], tuple(ids[1:]), None, Source("rows.jsonl", 1), (True,) * len(completions))


def drawn(mask: torch.Tensor) -> list[str]:
    return ["".join("x" if seen else "." for seen in row) for row in mask.tolist()]


def packed(*examples: Example, layout: Layout = Layout.shared) -> Batch:
    return pack(examples, range(len(examples)), layout=layout, pad_id=0)


def test_branch_mask_by_hand() -> None:
    """A row of prompt 2, branches of 2 and 1; a second group with a prompt of 1 and a branch of 1; padding."""
    batch = packed(example(2, 2, 1), example(1, 1, 1))
    batch = pack([example(3, 4, 1), example(2, 2, 1), example(1, 1, 1)], [0, 1, 2], layout=Layout.shared, pad_id=0)
    assert batch.groups.tolist() == [[0] * 8, [1] * 5 + [2] * 3]
    batch.groups[1, 7] = -1  # the last branch's token becomes nobody's
    assert drawn(branch_mask(batch)[1, 0]) == [
        "x.......",
        "xx......",
        "xxx.....",
        "xxxx....",
        "xx..x...",
        ".....x..",
        ".....xx.",
        ".......x",  # padding sees itself alone, and nobody sees it
    ]


def test_window_is_the_distance_within_the_branch_s_own_text() -> None:
    """Prompt 3, branches of 2 and 3, window 3: the second branch is as far from the prompt as the first."""
    assert drawn(branch_mask(packed(example(3, 2, 3)), window=3)[0, 0]) == [
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
    made._attn_implementation = "sdpa"
    return made


def test_separate_rows_need_no_more_than_their_length() -> None:
    mask = attention_mask(packed(example(2, 2, 1), layout=Layout.separate), config("llama"), torch.float32)
    assert isinstance(mask, torch.Tensor) and mask.tolist() == [[True] * 4, [True] * 3 + [False]]


def test_eager_attention_takes_the_mask_as_numbers_to_add() -> None:
    batch, eager = packed(example(2, 2, 1)), config("llama")
    eager._attn_implementation = "eager"
    mask = attention_mask(batch, eager, torch.bfloat16)
    assert isinstance(mask, torch.Tensor) and mask.dtype == torch.bfloat16
    assert torch.equal(mask == 0, branch_mask(batch))
    assert mask.min() == torch.finfo(torch.bfloat16).min


def test_each_kind_of_layer_gets_its_mask() -> None:
    batch = packed(example(3, 2, 3))
    masks = attention_mask(batch, config("gemma2", sliding_window=3, num_hidden_layers=2), torch.float32)
    assert isinstance(masks, dict)
    assert torch.equal(masks["full_attention"], branch_mask(batch))
    assert torch.equal(masks["sliding_attention"], branch_mask(batch, window=3))
    mistral = attention_mask(batch, config("mistral", sliding_window=3), torch.float32)
    assert isinstance(mistral, torch.Tensor) and torch.equal(mistral, branch_mask(batch, window=3))


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
    model = load_language_model(ModelConfig(init=init, attention=Attention.eager), tokenizer)
    with torch.no_grad():
        assert token_logprobs(model, packed(example(3, 2, 2), layout=Layout.separate)).isfinite().all()
        with pytest.raises(ConfigError, match=r"batch\.layout must be separate"):
            token_logprobs(model, packed(example(3, 2, 2)))

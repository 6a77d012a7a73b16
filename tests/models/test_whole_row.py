"""flex_attention where one call a layer cannot serve: as attention group by group reads and learns, and when it is.

Uncompiled, which computes all scores. torch refuses to differentiate it on a CPU, where the kernel is forward only;
what it has for any device does, once nobody asks which device it is on.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention
from transformers import AutoConfig, PreTrainedTokenizerBase

from alignment.models import attention, whole_row
from alignment.models.attention import AUTO, FLEX, GROUPED, Kernel, kernel_of
from alignment.models.readout import token_logprobs
from tests.models.test_readout import FAMILIES
from tests.models.test_varlen import SHAPES, assert_same, learned, loaded, packed

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def whole_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A CPU that takes heads of any size; how often rows were attended to, and masks made."""
    counts = {"flex_attention_forward": 0, "block_mask": 0}

    def counted(name: str) -> Any:
        own: Any = vars(attention)[name]

        def call(*inputs: Any, **settings: Any) -> Any:
            counts[name] += 1
            return own(*inputs, **settings)

        return call

    for name in counts:
        monkeypatch.setattr(attention, name, counted(name))
    monkeypatch.setattr(whole_row, "DEVICES", ("cpu",))
    monkeypatch.setattr(whole_row, "SMALLEST", 1)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    with torch.compiler.set_stance("force_eager"):
        yield counts


@pytest.mark.parametrize("replies", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_it_reads_and_learns_as_group_by_group(
    name: str,
    replies: int,
    tokenizer: PreTrainedTokenizerBase,
    whole_rows: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float32. One call a layer, and one mask for each kind of layer, however many groups and layers."""
    batch, model = packed(SHAPES[replies]), loaded(name, tokenizer)
    whole_rows.update(dict.fromkeys(whole_rows, 0))
    got = learned(model, token_logprobs(model, batch))
    kinds = 2 if name in ("gemma2, window 5", "gemma3, window 5", "qwen2, window 5 in one layer") else 1
    assert whole_rows["flex_attention_forward"] == 2
    assert whole_rows["block_mask"] <= kinds
    monkeypatch.setattr(whole_row, "DEVICES", ())
    assert_same(got, learned(model, token_logprobs(model, batch)), 1e-4)
    assert whole_rows["flex_attention_forward"] == 2


def test_a_cap_is_in_its_scores(
    tokenizer: PreTrainedTokenizerBase, whole_rows: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers slide and see all by turns."""
    batch = packed([(70, 50, 9), (3, 4, 2)])
    capped, uncapped = (loaded("gemma2, window 5", tokenizer, attn_logit_softcapping=cap) for cap in (0.1, 1e4))
    got = learned(capped, token_logprobs(capped, batch))
    monkeypatch.setattr(whole_row, "DEVICES", ())
    want, other = (learned(model, token_logprobs(model, batch)) for model in (capped, uncapped))
    assert (want[0] - other[0]).abs().max() > 1e-2
    assert_same(got, want, 1e-4)


@pytest.mark.parametrize(
    ("chosen", "size", "dtype", "device", "kernel"),
    [
        (AUTO["sdpa"], 64, torch.bfloat16, CUDA, Kernel.one_call),
        (AUTO["sdpa"], 64, torch.float32, CUDA, Kernel.whole_row),
        (AUTO["sdpa"], 264, torch.bfloat16, CUDA, Kernel.whole_row),
        (AUTO["sdpa"], 8, torch.bfloat16, CUDA, Kernel.one_call),
        (AUTO["sdpa"], 8, torch.float32, CUDA, Kernel.by_group),
        (AUTO["eager"], 64, torch.bfloat16, CUDA, Kernel.whole_row),
        (AUTO["eager"], 8, torch.bfloat16, CUDA, Kernel.by_group),
        (AUTO["sdpa"], 64, torch.float32, CPU, Kernel.by_group),
        (AUTO["eager"], 64, torch.float32, CPU, Kernel.by_group),
        (GROUPED["sdpa"], 64, torch.bfloat16, CUDA, Kernel.by_group),
        (GROUPED["eager"], 64, torch.bfloat16, CUDA, Kernel.by_group),
        (FLEX, 8, torch.bfloat16, CUDA, Kernel.whole_row),
    ],
)
def test_which_kernel_is_chosen(
    chosen: str, size: int, dtype: torch.dtype, device: torch.device, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is not there is asked for nothing."""
    config = AutoConfig.for_model("llama", head_dim=size)
    config._attn_implementation = chosen
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: dtype != torch.float32)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: dtype)
    assert kernel_of(config, device) is kernel

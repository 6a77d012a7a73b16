"""A prompt in a call of its own: the sequences by hand, what it reads and learns, and when it is taken."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from count_operations import with_kernels
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, PreTrainedTokenizerBase

from alignment.models import two_calls, varlen
from alignment.models.branches import branch_rule
from alignment.models.readout import token_logprobs
from alignment.models.two_calls import merged_attention, parts_of
from alignment.models.varlen import gathered_attention, sequences_of, takes_two_calls, ways_of, written
from tests.models.test_varlen import ONE_CALL, SHAPES, assert_same, learned, loaded, packed
from tests.models.varlen_reference import on_a_cpu

ALWAYS = -(10**18)  # bytes that a second call costs


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A CPU that has the kernels, in any precision; how many sequences each call had."""
    found: list[int] = []
    torchs_own: Any = varlen.varlen_attn

    def counted(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, *rest: Any, **settings: Any) -> Any:
        found.append(len(ends) - 1)
        return torchs_own(q, k, v, ends, *rest, **settings)

    for module in (varlen, two_calls):
        monkeypatch.setattr(module, "varlen_attn", counted)
    monkeypatch.setattr(varlen, "DEVICES", ("cpu",))
    monkeypatch.setattr(varlen, "DTYPES", (torch.float32, torch.bfloat16))
    monkeypatch.setattr(varlen, "CALL", ALWAYS)
    with on_a_cpu():
        yield found


def test_parts_by_hand() -> None:
    """A prompt of 2 with branches of 2, 1 and 3; a prompt of 1 with branches of 1, 2 and 1."""
    made = parts_of(packed([(2, 2, 1, 3), (1, 1, 2, 1)]))
    assert made.own.query_ends.tolist() == made.own.key_ends.tolist() == [0, 4, 5, 8, 10, 12, 13]
    assert (made.own.longest, made.prompt.longest) == ((4, 4), (4, 2))
    assert (made.prompt.query_ends.tolist(), made.prompt.key_ends.tolist()) == ([0, 4, 7], [0, 2, 3])
    assert (made.later.tolist(), made.prompts.tolist()) == ([4, 5, 6, 7, 10, 11, 12], [0, 1, 8])


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_it_is_attention_to_what_a_token_sees(heads: tuple[int, int]) -> None:
    """Outputs and gradients in float64, of scores that reach far: sdpa with the branch rule as its mask."""
    batch = packed([(6, 5, 1, 2, 8), (9, 3, 3, 3, 3), (1, 2, 2, 2, 2)])
    length = batch.input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    q, k, v, weights = (
        torch.randn(length, of, 8, dtype=torch.float64, generator=generator, requires_grad=True)
        for of in (heads[0], heads[1], heads[1], heads[0])
    )
    with on_a_cpu():
        out = merged_attention(q, k, v, parts_of(batch), 3.0)
        got = torch.autograd.grad((out * weights).sum(), (q, k, v))
    order = torch.arange(length)
    seen = branch_rule(batch)(0, 0, order[:, None], order[None, :])
    swapped = (part.transpose(0, 1)[None] for part in (q, k, v))
    plain = scaled_dot_product_attention(*swapped, seen, scale=3.0, enable_gqa=True)[0].transpose(0, 1)
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(got, torch.autograd.grad((plain * weights).sum(), (q, k, v)))


@pytest.mark.parametrize("replies", SHAPES)
@pytest.mark.parametrize("name", ONE_CALL)
def test_two_calls_a_layer_read_and_learn_as_group_by_group(
    name: str, replies: int, tokenizer: PreTrainedTokenizerBase, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that slide gather, as all do where a prompt has one completion."""
    batch, model = packed(SHAPES[replies]), loaded(name, tokenizer)
    monkeypatch.setattr(varlen, "takes_two_calls", lambda batch, _: batch.replies > 1)
    got = learned(model, token_logprobs(model, batch))
    groups = len(SHAPES[replies])
    if replies == 1:
        assert calls == [groups] * 2
    elif "window" not in name:
        assert calls == [groups * replies, groups] * 2
    monkeypatch.setattr(varlen, "DEVICES", ())
    assert_same(got, learned(model, token_logprobs(model, batch)), 1e-5)


def test_layers_that_slide_gather_and_the_others_do_not(
    tokenizer: PreTrainedTokenizerBase, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = loaded("qwen2, window 5 in one layer", tokenizer), packed(SHAPES[2])
    token_logprobs(model, batch)
    assert sorted(calls) == [3, 6, 6]  # a layer that slides; and the other's two
    calls.clear()
    token_logprobs(model, packed([(2, 2, 1), (1, 2, 3)]))  # of which a window of 5 hides nothing
    assert calls == [4, 2, 4, 2]


def test_in_half_precision_it_is_as_near_as_one_call() -> None:
    """Both against the same in float64, whose inputs are the rounded ones."""
    batch = packed([(60, 5, 30, 12), (9, 30, 20, 30)])
    length = batch.input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(length, of, 16, generator=generator).bfloat16().double() for of in (4, 2, 2)]
    found = []
    with on_a_cpu():
        for dtype in (torch.float64, torch.bfloat16):
            for attend, of in (
                (lambda *qkv: gathered_attention(*qkv, 0.5, 0), sequences_of(batch)),
                (lambda *qkv: merged_attention(*qkv, 0.5), parts_of(batch)),
            ):
                inputs = [part.to(dtype).detach().requires_grad_() for part in exact]
                out = attend(*inputs, of)
                gradients = torch.autograd.grad(out, inputs, torch.ones_like(out))
                found.append([part.detach().double() for part in (out, *gradients)])
    want, _, one, two = found
    for exact_part, of_one, of_two in zip(want, one, two, strict=True):
        assert (of_two - exact_part).norm() < 1.5 * (of_one - exact_part).norm()


LLAMA = AutoConfig.for_model(
    "llama", hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, head_dim=128, num_hidden_layers=32
)


@pytest.mark.parametrize(
    ("shape", "groups", "expected"),
    [
        ((1024, *[256] * 8), 4, False),  # 8 completions to a prompt of 1,024: their queries are more than its keys
        ((8192, *[128] * 8), 1, True),
        ((8192, *[1024] * 8), 1, False),
        ((1024, 64, 64), 1, False),  # saves less than a call costs
        ((1024, 64, 64), 16, True),
        ((8192, 256), 32, False),  # nothing to copy
    ],
)
def test_it_is_taken_where_prompts_are_long(shape: tuple[int, ...], groups: int, expected: bool) -> None:
    batch = packed([shape] * groups)
    assert takes_two_calls(batch, LLAMA) is expected
    ways = ways_of(batch, LLAMA)
    assert (ways.parts is not None, ways.gathered is None) == (expected, expected)


class Written(TorchDispatchMode):
    """Bytes that operations write, views excepted; into a tensor that is there, what is put in place."""

    bytes = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            made = [args[3]] if operation is torch.ops.aten.index_copy_.default else tree_leaves(results)
            self.bytes += sum(each.numel() * each.element_size() for each in made if isinstance(each, Tensor))
        return results


@pytest.mark.parametrize("way", ["gathered", "two calls"])
def test_what_each_way_writes_is_what_is_counted(way: str) -> None:
    """In bfloat16; log-sum-exps and indices, which are a hundredth, are left out of the count."""
    heads, of_keys, size = 4, 2, 256
    config = AutoConfig.for_model("llama", num_attention_heads=heads, num_key_value_heads=of_keys, head_dim=size)
    batch = packed([(300, 40, 70, 50), (200, 90, 20, 60)])
    length = batch.input_ids.shape[1]
    q, k, v = (
        torch.zeros(length, of, size, dtype=torch.bfloat16, requires_grad=True) for of in (heads, of_keys, of_keys)
    )
    sequences, parts, gradient = sequences_of(batch), parts_of(batch), torch.zeros_like(q)
    with with_kernels(), Written() as seen:
        is_gathered = way == "gathered"
        out = gathered_attention(q, k, v, sequences, 0.5, 0) if is_gathered else merged_attention(q, k, v, parts, 0.5)
        torch.autograd.grad(out, (q, k, v), gradient)
    both = 2 * 2 * length * heads * size  # output and gradients of queries
    assert seen.bytes - both == pytest.approx(written(batch, config)[not is_gathered], rel=0.03)

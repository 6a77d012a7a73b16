"""Bounds on what a step issues, counted on a CPU: they are the same on a GPU."""

from collections.abc import Iterator

import pytest
import torch
from count_operations import Operations, a_layer, step, with_kernels
from counted_steps import METHODS, SIZES, batch_of
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.model import Attention, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.losses.advantages import advantages_and_returns
from alignment.models import heads, logprobs, varlen
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs_and_entropy


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with with_kernels():
        yield


@pytest.mark.parametrize("is_apart", [False, True])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_operations_of_a_layer_do_not_grow_with_the_number_of_prompts(
    method: str, is_apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call a layer, and where the prompts have one of their own."""
    monkeypatch.setattr(varlen, "takes_two_calls", lambda batch, _: is_apart and batch.replies > 1)
    one, many = (a_layer(method, Layout.shared, Attention.auto, groups) for groups in (1, 64))
    for few, more in zip(one, many, strict=True):
        assert more <= 1.1 * few and few < 200
    grouped = a_layer(method, Layout.shared, Attention.sdpa, 64)
    assert grouped[0] > 5 * many[0]  # which is what they do elsewhere


def test_a_second_call_takes_a_dozen_operations_more(monkeypatch: pytest.MonkeyPatch) -> None:
    one = a_layer("dpo", Layout.shared, Attention.auto, 4)
    monkeypatch.setattr(varlen, "takes_two_calls", lambda batch, _: batch.replies > 1)
    two = a_layer("dpo", Layout.shared, Attention.auto, 4)
    assert 0 < sum(two) - sum(one) <= 20
    assert step("dpo", Layout.shared, Attention.auto, 4, 2).waits == {"_local_scalar_dense": 1}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_a_gpu_once_whatever_the_number_of_micro_batches(method: str) -> None:
    for micro_batches in (1, 3):
        assert step(method, Layout.shared, Attention.auto, 4, 2, micro_batches).waits == {"_local_scalar_dense": 1}


@pytest.mark.parametrize("method", METHODS)
def test_separate_rows_wait_once_more_for_each_micro_batch(method: str) -> None:
    """Whether their positions are those of one text or of several is looked up by transformers as it makes a mask."""
    found = [step(method, Layout.separate, Attention.auto, 4, 2, micro_batches).waits for micro_batches in (1, 3)]
    passes = 2 if method == "kto" else 1  # which reads replies to other prompts first
    assert [sum(waits.values()) for waits in found] == [1 + passes, 1 + 3 * passes]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_masks_losses_and_metrics_take_no_operations_for_each_token(
    method: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "vocab_size", 2048)  # the logits of both are one chunk
    monkeypatch.setattr(logprobs, "ROWS", 10**6)  # and their softmax one piece
    short, long = (step(method, layout, Attention.auto, 4, 2, times=times) for times in (1, 8))
    assert long.operations == short.operations and long.made > 4 * short.made


def test_advantages_take_no_operations_for_each_token() -> None:
    found = []
    for length in (64, 1024):
        with Operations() as seen:
            advantages_and_returns(
                torch.zeros(2, length),
                torch.zeros(2, length),
                torch.ones(2, length, dtype=torch.bool),
                gamma=1.0,
                lam=0.95,
            )
        found.append(seen.total)
    assert found[1] <= found[0] + 4 * 8 and found[1] < 120  # 1024 is 64 doubled four times


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (1.0, 0.0)])
def test_advantages_are_those_of_the_recursion(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 37, dtype=torch.float64, generator=generator)
    mask = torch.ones(3, 37, dtype=torch.bool)
    mask[1, 21:], mask[2, :9] = False, False
    got, returns = advantages_and_returns(rewards, values, mask, gamma=gamma, lam=lam)
    advantage, following = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for t in reversed(range(37)):
        r, v = rewards[:, t] * mask[:, t], values[:, t] * mask[:, t]
        advantage = r + gamma * following - v + gamma * lam * advantage
        following = v
        torch.testing.assert_close(got[:, t], advantage * mask[:, t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(returns, got + values * mask)


def of_vocabulary(shapes: set[tuple[int, ...]], size: int) -> int:
    """The most tokens whose logits, or something of their size, exist in one tensor."""
    return max(shape[0] for shape in shapes if len(shape) == 2 and shape[1] == size)


def test_logits_of_32_thousand_tokens_exist_a_chunk_at_a_time(tokenizer: PreTrainedTokenizerBase) -> None:
    """Of 152 thousand pieces, forward and backward, without a memory: on the meta device, which computes nothing."""
    size, tokens = 152_000, 32_768
    init = {"model_type": "llama", "num_hidden_layers": 1, **SIZES}
    model = load_language_model(ModelConfig(init=init), tokenizer, WHOLE)
    model.hf.set_output_embeddings(nn.Linear(SIZES["hidden_size"], size, bias=False))
    model.hf.config.vocab_size = size
    model = model.to("meta")
    batch = batch_of(1, 1, Layout.shared).to(torch.device("meta"))
    places, targets = (torch.zeros(tokens, dtype=torch.long, device="meta") for _ in range(2))
    batch.positions, batch.targets = places, targets
    with Operations() as seen:
        token_logprobs_and_entropy(model, batch)[0].sum().backward()
    most = of_vocabulary(seen.shapes, size)
    assert most == heads.CHUNK // size == 220
    assert max(torch.Size(shape).numel() for shape in seen.shapes) <= heads.CHUNK

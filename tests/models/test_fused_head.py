"""A head whose logits are never whole: what it reads and learns, and which heads it serves. On a CPU trl's kernels are
torch's operations, tile by tile; all that is around the kernels is the same."""

from typing import Any

import pytest
import torch
from count_operations import Operations
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedTokenizerBase
from trl.kernels import chunked_logprob

from alignment.config.model import LoraConfig, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models import fused_head, heads
from alignment.models.fused_head import LogitScale, read, reads
from alignment.models.load import load_language_model
from tests.models.test_readout import FAMILIES
from tests.models.test_varlen import SHAPES, assert_same, learned, loaded, packed

PLAIN = LogitScale(None, None, None)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens and 50 words at most."""
    monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", 5)
    monkeypatch.setattr(heads, "CHUNK", 50 * 5)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", [*FAMILIES, "gemma2, capped"])
def test_it_reads_and_learns_as_from_logits(
    name: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probs, entropy and hits at a temperature, with biases, scales and caps; and every gradient."""
    more = {"final_logit_softcapping": 0.5, "tie_word_embeddings": False} if "capped" in name else {}
    model = loaded("gemma2, window 5" if more else name, tokenizer, **more)
    batch, results = packed(SHAPES[2]), []
    assert model(batch, batch.positions, batch.targets)[0].requires_grad
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(fused_head, "DEVICES", devices)
        assert reads(model.hf.get_output_embeddings(), torch.zeros(1)) is bool(devices)
        logprobs, entropy, hits = model(batch, batch.positions, batch.targets, 0.7, entropy=True, greedy=True)
        assert not entropy.requires_grad and not hits.requires_grad
        results.append([*learned(model, logprobs), entropy, hits])
    assert_same(results[1], results[0], 1e-5)


def test_under_autocast_it_reads_rounded_logits_in_float32(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, results = loaded("llama", tokenizer), packed(SHAPES[4]), []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(fused_head, "DEVICES", devices)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (logprobs,) = model(batch, batch.positions, batch.targets)
        assert logprobs.dtype == torch.float32
        results.append(learned(model, logprobs))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    assert_same(results[1], results[0], 0.05)


def test_which_heads_it_serves(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden = nn.Linear(4, 6), torch.zeros(2, 4)
    assert not reads(head, hidden)  # on a CPU
    monkeypatch.setattr(fused_head, "DEVICES", ("cpu",))
    assert reads(head, hidden) and not reads(head, hidden.double())
    vars(head.weight)["ds_id"] = 0
    assert not reads(head, hidden)
    lora = LoraConfig(rank=2, targets=["q_proj", "lm_head"])
    adapted = load_language_model(ModelConfig(init=FAMILIES["llama"], lora=lora), tokenizer, WHOLE)
    assert not reads(adapted.hf.get_output_embeddings(), hidden)
    batch = packed(SHAPES[2])
    (logprobs,) = adapted(batch, batch.positions, batch.targets)  # from logits
    assert logprobs.requires_grad


def test_no_tokens_are_read_and_learned() -> None:
    hidden, head = torch.zeros(0, 4, requires_grad=True), nn.Linear(4, 6)
    asked: dict[str, Any] = {"temperature": 1.0, "entropy": True, "greedy": True, "most": 2**25}
    found = read(head, hidden, torch.zeros(0, dtype=torch.long), PLAIN, **asked)
    assert [part.shape for part in found] == [(0,)] * 3
    found[0].sum().backward()
    assert head.weight.grad is not None and not head.weight.grad.any()


def test_logits_of_32_thousand_tokens_exist_a_tile_at_a_time() -> None:
    """Of 152 thousand pieces, forward and backward, of tensors without numbers; as many operations to a tile for 4,096
    tokens as for two, and none that waits."""
    found = []
    asked: dict[str, Any] = {"temperature": 0.7, "entropy": True, "greedy": True, "most": heads.CHUNK}
    for tokens in (2, 4096, 32_768):
        with FakeTensorMode():
            head, hidden = nn.Linear(8, 152_000, bias=False), torch.zeros(tokens, 8, requires_grad=True)
            targets = torch.zeros(tokens, dtype=torch.long)
            with Operations() as seen:
                read(head, hidden, targets, PLAIN, **asked)[0].sum().backward()
        assert max(torch.Size(shape).numel() for shape in seen.shapes) <= heads.CHUNK and not seen.waits
        found.append(seen.total)
    assert found[0] == found[1] and found[2] < 8 * found[1]

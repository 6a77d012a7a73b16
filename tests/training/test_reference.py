from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alignment.config.batch import BatchConfig, Layout
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import UserError
from alignment.config.reference import ReferenceConfig
from alignment.config.train import OnNonFinite
from alignment.data.batches import Batches, Packer
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.models.heads import LanguageModel
from alignment.training.reference import cache_folder, fingerprint, reference_logprobs, require_reference


def pair(seed: int) -> Example:
    rng = np.random.default_rng(seed)
    prompt, chosen, rejected = (rng.integers(3, 30, size).astype(np.int32) for size in (4, 3 + seed, 5))
    return Example(prompt, (chosen, rejected), None, Source("made", seed), (True, True))


@pytest.fixture
def batches() -> Batches:
    return Batches(
        [pair(seed) for seed in range(6)], Packer(BatchConfig(size=2, max_tokens=40, layout=Layout.shared), 0), 0
    )


@pytest.fixture
def engine() -> TorchEngine:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = LanguageModel(LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **size)), WHOLE)
    optimizer = torch.optim.SGD(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return TorchEngine(model, optimizer, scheduler, config=DistributedConfig(device=Device.cpu), max_grad_norm=1.0)


def test_the_cache_gives_what_was_computed_and_is_filled_row_by_row(engine, batches, tmp_path):
    cache = tmp_path / "table.safetensors"
    some = reference_logprobs(engine, batches, [1, 4], cache=cache)
    assert some.isnan().any(1).tolist() == [True, False, True, True, False, True]
    whole = reference_logprobs(engine, batches, range(6), cache=cache)
    assert torch.equal(whole[[1, 4]], some[[1, 4]])
    fresh = reference_logprobs(engine, batches, range(6))
    torch.testing.assert_close(whole, fresh, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        engine.model.hf.lm_head.weight.zero_()
    assert torch.equal(reference_logprobs(engine, batches, range(6), cache=cache), whole), "nothing is computed again"


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_cache_is_computed_again_and_said_once(engine, batches, tmp_path, capsys, damage):
    cache = tmp_path / "table.safetensors"
    whole = reference_logprobs(engine, batches, range(6), cache=cache)
    data = bytearray(cache.read_bytes())
    data[-3] ^= 64
    written = {"cut": bytes(data[:60]), "flipped": bytes(data), "foreign": b"{}"}[damage]
    cache.write_bytes(written)
    assert torch.equal(reference_logprobs(engine, batches, range(6), cache=cache), whole)
    assert capsys.readouterr().out.replace("\n", " ").count("the reference cache is damaged") == 1
    reference_logprobs(engine, batches, range(6), cache=cache)
    assert "damaged" not in capsys.readouterr().out


def test_another_input_is_another_name(engine, batches):
    examples = batches.examples
    name = fingerprint(engine.model, examples, "float32")
    assert fingerprint(engine.model, examples, "float32") == name
    assert fingerprint(engine.model, examples, "bfloat16") != name
    assert fingerprint(engine.model, examples[::-1], "float32") != name
    longer = replace(examples[0], prompt_ids=np.append(examples[0].prompt_ids, np.int32(7)))
    assert fingerprint(engine.model, [longer, *examples[1:]], "float32") != name
    engine.model.hf.config.rope_theta = 5.0
    other = fingerprint(engine.model, examples, "float32")
    assert other != name, "the same weights read with other settings"
    name = other
    with torch.no_grad():
        engine.model.hf.model.norm.weight[0] += 1e-3
    assert fingerprint(engine.model, examples, "float32") != name


def test_a_token_cannot_move_over_a_border_unseen(engine):
    one, other = pair(0), pair(0)
    moved = replace(
        other,
        prompt_ids=np.append(other.prompt_ids, other.completion_ids[0][:1]),
        completion_ids=(other.completion_ids[0][1:], other.completion_ids[1]),
    )
    assert fingerprint(engine.model, [one], "float32") != fingerprint(engine.model, [moved], "float32")


def test_the_cache_lies_beside_the_data(tmp_path):
    assert cache_folder(ReferenceConfig(), str(tmp_path / "pairs.jsonl")) == tmp_path / ".reference"
    assert cache_folder(ReferenceConfig(folder="here"), str(tmp_path / "pairs.jsonl")) == Path("here")
    assert cache_folder(ReferenceConfig(), None).parts[-2:] == ("alignment", "reference")


def test_pairs_without_a_reference_are_named_before_the_first_step(engine, batches, capsys):
    table = reference_logprobs(engine, batches, range(6))
    require_reference(table, batches, range(6), OnNonFinite.stop)
    table[4, 1] = torch.inf
    table[0] = torch.nan  # which no step of the run touches
    told = r"^the reference's log-probs are no finite numbers for 1 rows, first made:4: .* \(train\.on_nonfinite=skip"
    with pytest.raises(UserError, match=told):
        require_reference(table, batches, range(1, 6), OnNonFinite.stop)
    require_reference(table, batches, range(1, 6), OnNonFinite.skip)
    assert "first made:4: " in capsys.readouterr().out

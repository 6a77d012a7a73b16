"""One backbone for four roles: the same numbers as four models."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.models.adapters import lora_layers
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.models.readout import sequence_scores, token_logprobs, token_values
from alignment.rl.reference import build_reference
from alignment.rl.roles import scalar_on

LORA = LoraConfig(rank=4, alpha=8)


@pytest.fixture(scope="module")
def base(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path_factory: Any) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def batch() -> Batch:
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, 96, count).astype(np.int32)

    examples = [
        Example(ids(p), (ids(a), ids(b)), None, Source("x", 1), (True, True)) for p, a, b in [(7, 5, 9), (3, 4, 2)]
    ]
    return pack(examples, range(2), layout=Layout.shared, pad_id=0)


def shaken(model: torch.nn.Module, seed: int) -> None:
    """Adapters start as nothing; give this one something to say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" in name:
                parameter.normal_(std=0.1, generator=generator)


def reward_run(base: Path, tokenizer: PreTrainedTokenizerBase, folder: Path, *, trained: bool) -> Any:
    """A reward model with an adapter on the base, as a reward run leaves it."""
    torch.manual_seed(1)
    reward = load_scalar_model(ModelConfig(path=str(base), lora=LORA), tokenizer, WHOLE)
    if trained:
        shaken(reward, 1)
    save_model(reward, tokenizer, folder / "model")
    return reward


@torch.no_grad()
def test_untrained_adapters_give_exactly_what_four_models_give(
    base: Path, batch: Batch, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    own = reward_run(base, tokenizer, tmp_path, trained=False)
    plain = load_language_model(ModelConfig(path=str(base)), tokenizer, WHOLE)
    policy = load_language_model(ModelConfig(path=str(base), lora=LORA), tokenizer, WHOLE)
    reward = scalar_on(policy, "reward", 0, tmp_path / "model" / "adapter")
    critic = scalar_on(policy, "critic", 0, tmp_path / "model" / "adapter")
    for _ in range(2):  # whoever was active before
        assert torch.equal(sequence_scores(reward, batch), sequence_scores(own, batch))
        assert torch.equal(token_values(critic, batch), token_values(own, batch))
        assert torch.equal(token_logprobs(policy, batch), token_logprobs(plain, batch))
        assert torch.equal(build_reference(policy).logprobs(batch, 1.0), token_logprobs(plain, batch))


@torch.no_grad()
def test_trained_adapters_keep_out_of_each_other_s_way(
    base: Path, batch: Batch, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    own = reward_run(base, tokenizer, tmp_path, trained=True)
    plain = load_language_model(ModelConfig(path=str(base)), tokenizer, WHOLE)
    policy = load_language_model(ModelConfig(path=str(base), lora=LORA), tokenizer, WHOLE)
    alone = deepcopy(policy)
    shaken(alone, 2)
    reward, critic = (scalar_on(policy, name, 0, tmp_path / "model" / "adapter") for name in ("reward", "critic"))
    policy.activate()
    shaken(policy, 2)
    scores, values = sequence_scores(own, batch), token_values(own, batch)
    assert torch.equal(token_logprobs(policy, batch), token_logprobs(alone, batch))
    assert torch.equal(sequence_scores(reward, batch), scores)
    assert torch.equal(token_values(critic, batch), values)
    critic.activate()
    shaken(critic, 3)
    assert not torch.equal(token_values(critic, batch), values)
    assert torch.equal(sequence_scores(reward, batch), scores)
    assert torch.equal(token_logprobs(policy, batch), token_logprobs(alone, batch))
    assert torch.equal(build_reference(policy).logprobs(batch, 1.0), token_logprobs(plain, batch))


def test_each_role_trains_its_own_weights(
    base: Path, batch: Batch, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    reward_run(base, tokenizer, tmp_path, trained=True)
    policy = load_language_model(ModelConfig(path=str(base), lora=LORA), tokenizer, WHOLE)
    critic = scalar_on(policy, "critic", 0, tmp_path / "model" / "adapter")
    assert all(".default." in name for name in policy.trained())
    assert {name for name in critic.trained() if ".critic." not in name} == {"hf.score.weight"}
    shapes = [p.shape for p in critic.trained().values() if p.ndim == 2 and p.shape[0] != 1]
    assert shapes == [p.shape for p in policy.trained().values()]
    token_values(critic, batch).sum().backward()
    graded = {name for name, p in critic.named_parameters() if p.grad is not None}
    assert graded == set(critic.trained())
    body = {id(p) for p in policy.hf.base_model.parameters()}
    assert {id(p) for p in critic.hf.base_model.parameters()} == body


def test_without_a_folder_the_role_begins_at_the_base(
    base: Path, batch: Batch, tokenizer: PreTrainedTokenizerBase
) -> None:
    policy = load_language_model(ModelConfig(path=str(base), lora=LORA), tokenizer, WHOLE)
    critic = scalar_on(policy, "critic", 0, None)
    plain = load_scalar_model(ModelConfig(path=str(base)), tokenizer, WHOLE)
    plain.hf.score.weight.data.copy_(critic.hf.score.weight)
    with torch.no_grad():
        assert torch.equal(token_values(critic, batch), token_values(plain, batch))


def test_the_saved_adapter_is_peft_s(
    base: Path, batch: Batch, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    own = reward_run(base, tokenizer, tmp_path, trained=True)
    hf = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    theirs = PeftModel.from_pretrained(hf, str(tmp_path / "model" / "adapter")).eval()
    ids = batch.input_ids[:, :12]
    with torch.no_grad():
        merged = load_scalar_model(ModelConfig(path=str(tmp_path / "model")), tokenizer, WHOLE)
        want = own.hf(input_ids=ids).logits
        torch.testing.assert_close(theirs(input_ids=ids).logits, want)
        torch.testing.assert_close(merged.hf(input_ids=ids).logits, want)


def test_an_adapter_of_another_base_or_rank_is_refused(
    base: Path, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    reward_run(base, tokenizer, tmp_path, trained=True)
    other = load_language_model(ModelConfig(init=tiny_init, lora=LORA), tokenizer, WHOLE)
    with pytest.raises(ConfigError, match=r"^roles\.share=lora needs adapters of model\.path"):
        scalar_on(other, "critic", 0, tmp_path / "model" / "adapter")
    some = replace(LORA, targets=["q_proj"])
    policy = load_language_model(ModelConfig(path=str(base), lora=some), tokenizer, WHOLE)
    assert lora_layers(policy.hf)
    with pytest.raises(ConfigError, match=r"needs adapters on the same layers, got another at model"):
        scalar_on(policy, "critic", 0, tmp_path / "model" / "adapter")
    with pytest.raises(ConfigError, match=r"needs an adapter's folder \(adapter_config\.json\)"):
        scalar_on(policy, "reward", 0, tmp_path / "model")

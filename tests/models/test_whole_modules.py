"""Modules that are trained whole beside an adapter: they begin as they were, are saved as peft reads them, and a
reference reads what they were."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.models.heads import LanguageModel
from alignment.models.load import load_critic, load_language_model, save_model
from alignment.models.readout import token_logprobs
from alignment.rl.reference import build_reference
from tests.conftest import TINY

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])
LORA = LoraConfig(rank=4, targets=["q_proj", "up_proj"], modules_to_save=["embed_tokens", "lm_head", "model.norm"])
WEIGHTS = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


@pytest.fixture(scope="module", params=["apart", "tied"])
def base(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    init = {**TINY, "vocab_size": len(tokenizer), "tie_word_embeddings": request.param == "tied"}
    save_model(load_language_model(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, folder)
    return folder


@pytest.fixture
def model(base: Path, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    return load_language_model(ModelConfig(path=str(base), lora=LORA), tokenizer, WHOLE)


@pytest.fixture
def batch() -> Batch:
    row = Example(np.array([5, 6, 7, 8]), (np.array([9, 10, 2]),), None, Source("rows.jsonl", 1), (True,))
    return pack([row], [0], layout=Layout.shared, pad_id=0)


def stir(model: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.trained().values():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf.eval()(IDS).logits


def test_they_begin_as_they_were_and_train(model: LanguageModel, base: Path) -> None:
    torch.testing.assert_close(logits(model.hf), logits(AutoModelForCausalLM.from_pretrained(base)), rtol=0, atol=0)
    own = {name.removeprefix("hf.") for name in model.trained() if ".lora_" not in name}
    assert own == (WEIGHTS if base.name.startswith("apart") else WEIGHTS - {"lm_head.weight"})
    model.hf.train()(IDS).logits.square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(model.trained())


def test_saved_they_load_in_peft_and_here(
    model: LanguageModel, base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A head that is tied to the embeddings is saved by both names, as peft does, which ties them again."""
    stir(model)
    now = logits(model.hf)
    save_model(model, tokenizer, tmp_path)
    names = {name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors") if ".lora_" not in name}
    assert {name.removeprefix("base_model.model.") for name in names} == WEIGHTS
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    torch.testing.assert_close(logits(theirs), now, rtol=1e-5, atol=1e-5)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(merged), now, rtol=1e-4, atol=1e-5)
    in_base = load_language_model(ModelConfig(path=str(tmp_path / "adapter")), tokenizer, WHOLE)
    torch.testing.assert_close(logits(in_base.hf), now, rtol=1e-4, atol=1e-5)
    goes_on = ModelConfig(path=str(base), adapter=str(tmp_path / "adapter"), lora=LORA)
    again = load_language_model(goes_on, tokenizer, WHOLE)
    assert torch.equal(logits(again.hf), now) and again.trained().keys() == model.trained().keys()
    if base.name.startswith("tied"):  # peft trains two weights where it is not told that they are one
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        weights = load_file(file)
        save_file(weights | {"base_model.model.lm_head.weight": torch.zeros(len(tokenizer), 32)}, file)
        with pytest.raises(ConfigError, match=r"has another .* than the weight which its base ties it to$"):
            load_language_model(ModelConfig(path=str(tmp_path / "adapter")), tokenizer, WHOLE)
        with pytest.raises(ConfigError, match=r"^model\.adapter: the head and the embeddings .* must be one weight"):
            load_language_model(goes_on, tokenizer, WHOLE)


def test_the_reference_reads_what_they_were(
    model: LanguageModel, base: Path, batch: Batch, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Of a new adapter the base, of one that is trained on the modules that came with it."""
    stir(model)
    save_model(model, tokenizer, tmp_path)
    saved = str(tmp_path / "adapter")
    for adapter in (None, saved):
        policy = load_language_model(ModelConfig(path=str(base), adapter=adapter, lora=LORA), tokenizer, WHOLE)
        with torch.no_grad():
            before, trained = token_logprobs(policy, batch), list(policy.trained())
            reference = build_reference(policy)
            assert torch.equal(reference.logprobs(batch, 1.0), before)
            stir(policy)
            assert torch.equal(reference.logprobs(batch, 1.0), before)
            assert (token_logprobs(policy, batch) - before).abs().max() > 0.01
        assert list(policy.trained()) == trained
        token_logprobs(policy, batch).sum().backward()
        assert {name for name, p in policy.named_parameters() if p.grad is not None} == set(trained)


def test_what_cannot_be_trained_so_is_refused(
    base: Path, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    def said(init: dict[str, Any], *names: str) -> str:
        config = ModelConfig(init=init, lora=LoraConfig(rank=4, modules_to_save=list(names)))
        with pytest.raises(ConfigError) as error:
            load_language_model(config, tokenizer, WHOLE)
        return str(error.value)

    rule = "model.lora.modules_to_save must be modules of a LlamaForCausalLM, got"
    outside = "model.embed_tokens, model.norm, lm_head"
    assert said(tiny_init, "head") == f"{rule} 'head' (did you mean 'lm_head'?)"
    assert said(tiny_init, "embed_token") == f"{rule} 'embed_token' (did you mean 'embed_tokens'?)"
    assert said(tiny_init, "nope") == f"{rule} 'nope'; outside its layers it has {outside}"
    assert "modules that do not have an adapter (model.lora.targets), got 'mlp'" in said(tiny_init, "mlp")
    assert said(tiny_init, "act_fn").endswith("must be modules that have weights, got 'act_fn'")
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4}
    assert "must leave out 'transformer.wte' of this model, whose head is the same weight" in said(gpt2, "lm_head")
    with pytest.raises(ConfigError, match=r"^model\.lora\.modules_to_save goes with model\.lora\.rank > 0"):
        ModelConfig(init=tiny_init, lora=LoraConfig(modules_to_save=["lm_head"]))


def test_a_critic_trains_none_of_the_policy_s(
    model: LanguageModel, base: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    critic = load_critic(None, ModelConfig(path=str(base), lora=LORA), model, tokenizer)
    assert {name for name in critic.trained() if ".lora_" not in name} == {"hf.score.weight"}
    adapted = ModelConfig(path=str(base), adapter="runs/a", lora=LORA)
    with pytest.raises(ConfigError, match=r"^critic\.path must name a reward model with model\.adapter=runs/a, which"):
        load_critic(None, adapted, model, tokenizer)

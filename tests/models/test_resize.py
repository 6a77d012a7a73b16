"""A tokenizer with more pieces than the model embeds: rows are added as transformers adds them, or a line says how."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)

from alignment.config.errors import ConfigError
from alignment.config.generation import Generation, GenerationConfig, require_served
from alignment.config.model import LoraConfig, ModelConfig
from alignment.distributed.placement import WHOLE, Whole
from alignment.models.load import (
    load_critic,
    load_frozen_language_model,
    load_language_model,
    load_reward_model,
    load_scalar_model,
    save_model,
)
from alignment.models.tokenizer import load_tokenizer
from alignment.models.vocabulary import SEED
from alignment.rl.reference import FrozenCopy, build_reference

IDS = torch.tensor([[5, 6, 7, 8, 2]])
ADDED = ["<one>", "<two>", "<three>"]
OLD, NEW = 2048, 2051
KINDS = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "bias": {"model_type": "phi"},  # of the head
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4},
}


@pytest.fixture
def longer(tmp_path: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(ModelConfig(init={"model_type": "llama"}))
    tokenizer.add_tokens(ADDED)
    assert len(tokenizer) == NEW
    return tokenizer


def init_of(tiny_init: dict[str, Any], kind: str) -> dict[str, Any]:
    return KINDS[kind] if kind == "gpt2" else {**tiny_init, **KINDS[kind]}


@pytest.fixture(params=["llama"])
def folder(
    request: pytest.FixtureRequest, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Path:
    """A language model that embeds the pieces of `tokenizer`."""
    torch.manual_seed(0)
    model = load_language_model(ModelConfig(init=init_of(tiny_init, request.param)), tokenizer, WHOLE)
    save_model(model, tokenizer, tmp_path / "base")
    return tmp_path / "base"


def grown(folder: Path, **more: Any) -> ModelConfig:
    return ModelConfig(path=str(folder), resize_embeddings=True, **more)


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_rows_are_those_that_transformers_adds(
    folder: Path, longer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No other number changes: logits of old tokens, the run's random numbers. Plain transformers loads the whole."""
    base = AutoModelForCausalLM.from_pretrained(folder)
    before = torch.get_rng_state()
    model = load_language_model(grown(folder), longer, WHOLE)
    assert torch.equal(before, torch.get_rng_state())
    said = (
        f"model.resize_embeddings: model.tokenizer has {NEW} pieces and the model embeds only {OLD} in {folder}: 3 rows"
    )
    assert said in capsys.readouterr().out
    logits = model.hf(IDS).logits
    assert logits.shape[-1] == NEW and torch.equal(logits[..., :OLD], base(IDS).logits)
    torch.manual_seed(SEED)
    base.resize_token_embeddings(NEW, mean_resizing=True)
    assert all(torch.equal(p, model.hf.state_dict()[name]) for name, p in base.state_dict().items())
    rows = model.hf.get_input_embeddings().weight[OLD:]
    assert rows.std() > 0 and torch.allclose(rows, base.get_input_embeddings().weight[:OLD].mean(0), atol=1e-3)
    save_model(model, longer, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert plain.config.vocab_size == NEW == len(AutoTokenizer.from_pretrained(tmp_path / "out"))
    both = torch.cat([IDS, torch.tensor([[OLD, NEW - 1]])], dim=1)
    assert torch.equal(plain(both).logits, model.hf(both).logits)


def test_new_rows_learn(folder: Path, longer: PreTrainedTokenizerBase) -> None:
    model = load_language_model(grown(folder), longer, WHOLE)
    model.hf(torch.tensor([[OLD]])).logits[..., NEW - 1].sum().backward()
    for weight, learns in (
        (model.hf.get_input_embeddings().weight, OLD),
        (model.hf.get_output_embeddings().weight, NEW - 1),
    ):
        assert weight.grad is not None and weight.grad.any(1).nonzero().flatten().tolist() == [learns]


def test_an_adapter_s_base_grows_frozen(
    folder: Path, longer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is said; a checkpoint holds the adapter alone, so its base must have the same rows whenever it is read."""
    model = load_language_model(grown(folder, lora=LoraConfig(rank=2)), longer, WHOLE)
    assert "model.lora.rank > 0 trains none of them" in capsys.readouterr().out
    assert not any("embed" in name or "head" in name for name in model.trained())
    torch.manual_seed(7)
    again = load_language_model(grown(folder, lora=LoraConfig(rank=2)), longer, WHOLE)
    assert torch.equal(model.hf.get_input_embeddings().weight, again.hf.get_input_embeddings().weight)
    save_model(model, longer, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits.shape[-1] == NEW


@pytest.mark.parametrize("folder", ["bias"], indirect=True)
def test_a_grown_head_is_held_as_it_was(folder: Path, longer: PreTrainedTokenizerBase) -> None:
    """Its products' weight in what they compute in, its bias in float32, with all its bits."""
    hf = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.normal_(hf.lm_head.bias)
    hf.save_pretrained(folder)
    model = load_frozen_language_model(grown(folder), longer, Whole(torch.bfloat16))
    head: Any = model.hf.get_output_embeddings()
    assert head.weight.dtype == torch.bfloat16 and torch.equal(head.weight[:OLD], hf.lm_head.weight.bfloat16())
    assert torch.equal(head.bias[:OLD], hf.lm_head.bias) and not head.weight.requires_grad
    assert model.hf.get_input_embeddings().weight.dtype == torch.float32


def test_a_scalar_model_grows_without_a_head_to_grow(
    folder: Path, longer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = load_scalar_model(grown(folder), longer, WHOLE)
    body = load_language_model(grown(folder), longer, WHOLE).hf.base_model.state_dict()
    assert all(torch.equal(weight, body[name]) for name, weight in model.hf.base_model.state_dict().items())
    save_model(model, longer, tmp_path / "reward")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    ids = torch.tensor([[5, OLD, NEW - 1]])
    assert plain.config.vocab_size == NEW and torch.equal(plain(ids).logits, model.hf(ids).logits)
    judge = load_reward_model(ModelConfig(path=str(tmp_path / "reward")), longer, WHOLE, key="reward.path")
    assert torch.equal(judge.hf(ids).logits, model.hf(ids).logits)


def test_the_roles_of_ppo_have_one_size(
    folder: Path, longer: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The reference copy, a critic that is the policy's body, and one that begins as a model that has not grown."""
    save_model(load_scalar_model(ModelConfig(path=str(folder)), tokenizer, WHOLE), tokenizer, tmp_path / "reward")
    policy = load_language_model(grown(folder), longer, WHOLE)
    reference = build_reference(policy)
    assert isinstance(reference, FrozenCopy)
    rows = policy.hf.get_input_embeddings().weight
    for critic in (
        load_critic(None, grown(folder), policy, longer),
        load_critic(None, replace(grown(folder), lora=LoraConfig(rank=2)), policy, longer),
    ):
        assert torch.equal(critic.hf.get_input_embeddings().weight, rows)
    assert torch.equal(reference.model.hf.get_input_embeddings().weight, rows)
    other = load_critic(str(tmp_path / "reward"), grown(folder), policy, longer)
    assert other.hf.get_input_embeddings().weight.shape == rows.shape


def test_a_random_model_grows_too(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    config = ModelConfig(init={**tiny_init, "vocab_size": 100}, resize_embeddings=True)
    policy = load_language_model(config, tokenizer, WHOLE)
    critic = load_critic(None, config, policy, tokenizer)
    assert policy.hf(IDS).logits.shape[-1] == OLD == critic.hf.config.vocab_size


def test_where_nothing_is_to_be_added_nothing_is(
    folder: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    own = load_language_model(grown(folder), tokenizer, WHOLE).state_dict()
    same = load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE).state_dict()
    assert own.keys() == same.keys() and all(torch.equal(own[name], same[name]) for name in own)
    assert "resize" not in capsys.readouterr().out


@pytest.mark.parametrize("load", [load_language_model, load_scalar_model])
def test_without_it_one_line_says_how(load: Any, folder: Path, longer: PreTrainedTokenizerBase) -> None:
    said = (
        "model.tokenizer has 2051 pieces and the model embeds only 2048: set model.resize_embeddings=true to add 3 rows"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        load(ModelConfig(path=str(folder)), longer, WHOLE)


def test_a_judge_that_lacks_rows_is_refused_by_its_own_key(
    folder: Path, longer: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """It is never trained, so `model.resize_embeddings` is no way out."""
    save_model(load_scalar_model(ModelConfig(path=str(folder)), tokenizer, WHOLE), longer, tmp_path / "reward")
    with pytest.raises(ConfigError, match=r"^reward\.path must embed all 2051 pieces of its tokenizer, got 2048$"):
        load_reward_model(ModelConfig(path=str(tmp_path / "reward")), longer, WHOLE, key="reward.path")


def test_a_quantised_base_is_refused(folder: Path, longer: PreTrainedTokenizerBase) -> None:
    settings = BitsAndBytesConfig(load_in_4bit=True)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings).save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).quantization_config["load_in_4bit"]
    with pytest.raises(
        ConfigError, match=r"^model\.resize_embeddings=true needs model\.path in whole weights, .* 2048$"
    ):
        load_language_model(grown(folder, lora=LoraConfig(rank=2)), longer, WHOLE)


def test_a_server_has_the_vocabulary_of_its_folder(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^model\.resize_embeddings must be false with generation\.engine=vllm, .*True$"
    ):
        require_served(GenerationConfig(engine=Generation.vllm), grown(folder))
    require_served(GenerationConfig(engine=Generation.vllm), ModelConfig(path=str(folder)))
    require_served(GenerationConfig(), grown(folder))

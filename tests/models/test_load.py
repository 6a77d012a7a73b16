"""From folders and configs, back into folders, and what is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from alignment.config.parts import ConfigError, LoraConfig, ModelConfig, UserError
from alignment.config.vocabulary import Attention
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_critic, load_language_model, load_scalar_model, save_model
from alignment.models.tokenizer import load_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 2]])


@pytest.fixture
def folder(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A language model's folder."""
    torch.manual_seed(0)
    save_model(load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_language_model_round_trip(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    save_model(model, tokenizer, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, model.hf(IDS).logits)
    again = load_language_model(ModelConfig(path=str(tmp_path)), tokenizer, WHOLE)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.get_vocab() == tokenizer.get_vocab() and saved.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_of_another_shape_are_not_saved(
    name: str, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """As of a model that was shared out behind its placement's back, or has given its memory back; also under LoRA."""
    for lora in (LoraConfig(), LoraConfig(rank=2, targets=["q_proj"])):
        model = load_language_model(ModelConfig(init=tiny_init, lora=lora), tokenizer, WHOLE)
        weight = dict(model.hf.named_parameters())[name]
        shape = list(weight.shape)
        weight.data = weight.new_empty(0)
        with pytest.raises(UserError, match=re.escape(f"saved with {name} of shape {shape}, got [0]")):
            save_model(model, tokenizer, tmp_path / "model")
        assert not (tmp_path / "model").exists()


def test_scalar_model_round_trip(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The head that was trained comes back, and is not made anew."""
    model = load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    save_model(model, tokenizer, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert plain.config.num_labels == 1
    assert torch.equal(plain(IDS).logits, model.hf(IDS).logits)
    again = load_scalar_model(ModelConfig(path=str(tmp_path)), tokenizer, WHOLE)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_language_model_s_folder_gets_a_new_scalar_head(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    body = AutoModelForCausalLM.from_pretrained(folder).base_model.state_dict()
    model = load_scalar_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    assert all(torch.equal(value, model.hf.base_model.state_dict()[name]) for name, value in body.items())
    head: Any = model.hf.score
    assert head.weight.shape == (1, 32)
    assert 0.1 < head.weight.std() * 33**0.5 < 2.0


def test_half_precision_weights_become_float32(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert {p.dtype for p in load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE).parameters()} == {
        torch.float32
    }


def test_attention_is_the_configured_one(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """sdpa and eager go group by group where a batch asks for it."""
    names = {Attention.sdpa: "grouped_sdpa", Attention.eager: "grouped_eager"}
    for attention in Attention:
        model = load_language_model(ModelConfig(path=str(folder), attention=attention), tokenizer, WHOLE)
        assert model.hf.config._attn_implementation == names.get(attention, attention.value)


def test_critic_without_a_folder_has_the_policy_s_body(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    config = ModelConfig(init=tiny_init)
    policy = load_language_model(config, tokenizer, WHOLE)
    critic = load_critic(None, config, policy, tokenizer)
    own = critic.hf.base_model.state_dict()
    for name, value in policy.hf.base_model.state_dict().items():
        assert torch.equal(value, own[name]) and value.data_ptr() != own[name].data_ptr()


def test_critic_of_a_policy_with_an_adapter(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    config = ModelConfig(init=tiny_init, lora=LoraConfig(rank=2))
    torch.manual_seed(0)
    policy = load_language_model(config, tokenizer, WHOLE)
    critic = load_critic(None, config, policy, tokenizer)
    hidden = critic.hf.base_model(IDS).last_hidden_state
    torch.testing.assert_close(hidden, policy.hf.base_model(IDS).last_hidden_state)


def test_critic_from_a_reward_model(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    reward = load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    save_model(reward, tokenizer, tmp_path)
    policy = load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    critic = load_critic(str(tmp_path), ModelConfig(init=tiny_init), policy, tokenizer)
    assert torch.equal(critic.hf(IDS).logits, reward.hf(IDS).logits)


def refused(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, match: str, load: Any = load_language_model
) -> str:
    with pytest.raises(ConfigError, match=match) as caught:
        load(config, tokenizer, WHOLE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "lama"}, r"^model\.init\.model_type .* got 'lama'$"),
        ({"hiden_size": 64}, r"^model\.init\.hiden_size is not a field of LlamaConfig"),
        ({"hidden_size": "big"}, r"^model\.init.*hidden_size.* 'big'"),
        ({"hidden_size": 30}, r"^model\.init.*hidden size \(30\)"),
        ({"vocab_size": 100}, r"^model\.tokenizer has 2048 pieces and the model embeds only 100$"),
        ({"model_type": "t5"}, r"^model\.init with model\.attention=sdpa: Unrecognized configuration class"),
    ],
)
def test_bad_init(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, change: dict[str, Any], match: str
) -> None:
    init = {"model_type": "t5"} if change == {"model_type": "t5"} else {**tiny_init, **change}
    refused(ModelConfig(init=init), tokenizer, match)


def test_attention_that_an_architecture_has_not(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    init = {**tiny_init, "model_type": "gemma2", "head_dim": 8}
    refused(ModelConfig(init=init), tokenizer, r"model\.attention=sdpa: Gemma2ForCausalLM does not support")


def test_no_model_in_the_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for load in (load_language_model, load_scalar_model):
        refused(ModelConfig(path=str(tmp_path)), tokenizer, r"^model\.path .*no model", load)


def test_config_of_an_unknown_type(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "lama"}))
    for load in (load_language_model, load_scalar_model):
        refused(ModelConfig(path=str(folder)), tokenizer, r"^model\.path .*lama", load)


def test_missing_weights_are_named(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in (load_language_model, load_scalar_model):
        message = refused(ModelConfig(path=str(folder)), tokenizer, r"^model\.path must hold all weights", load)
        assert "layers.1.mlp.up_proj.weight" in message


def test_weights_of_another_size_are_named(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    assert "mlp" in refused(ModelConfig(path=str(folder)), tokenizer, r"^model\.path")


def test_a_scalar_model_that_lost_its_head(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A folder that says it has a trained head and has none must not get a random one."""
    save_model(load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(ModelConfig(path=str(tmp_path)), tokenizer, r"score\.weight", load_scalar_model)


def test_a_classifier_s_folder_is_no_reward_model(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).save_pretrained(tmp_path)
    refused(ModelConfig(path=str(tmp_path)), tokenizer, r"score\.weight", load_scalar_model)


def test_tokenizer_larger_than_the_model_s_table(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    larger = AutoTokenizer.from_pretrained(folder)
    larger.add_tokens(["<new>"])
    for load in (load_language_model, load_scalar_model):
        refused(ModelConfig(path=str(folder)), larger, r"^model\.tokenizer has 2049 pieces", load)


def test_no_tokenizer(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"^model\.tokenizer: no tokenizer in"):
        load_tokenizer(ModelConfig(path=str(folder), tokenizer=str(empty)))


def test_tokenizer_without_an_end(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "endless")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "endless" / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key != "eos_token"})
    )
    with pytest.raises(ConfigError, match=r"^model\.tokenizer must have an end-of-sequence token"):
        load_tokenizer(ModelConfig(path=str(tmp_path / "endless")))


def test_tokenizer_without_padding_gets_some(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(ModelConfig(path=str(folder))).pad_token == "<pad>"

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
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from alignment.config.errors import ConfigError, UserError
from alignment.config.model import Attention, LoraConfig, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.init import COUNTED
from alignment.models.load import (
    load_critic,
    load_frozen_language_model,
    load_language_model,
    load_reward_model,
    load_scalar_model,
    save_model,
)
from alignment.models.tokenizer import load_tokenizer, prepare_tokenizer

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
    """As of a model that was sharded behind its placement's back, or has given its memory back; also under LoRA."""
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
    """sdpa and eager go group by group where a batch asks for it; without a wish it is the device's to say."""
    names = {Attention.auto: "auto_sdpa", Attention.sdpa: "grouped_sdpa", Attention.eager: "grouped_eager"}
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
        *(
            ({name: size}, rf"^model\.init\.{name} must be positive, got {size}$")
            for name in COUNTED
            for size in (0, -1)
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"^model\.init: Missing required keys in .*'yarn': .*factor"),
        (
            {"rope_parameters": {"rope_type": "nosuch", "factor": 2.0}},
            r"^model\.init: transformers knows no 'nosuch', got",
        ),
        ({"num_key_value_heads": 3}, r"^model\.init\.num_key_value_heads must divide num_attention_heads, .* got 3$"),
        ({"vocab_size": 100}, r"embeds only 100: set model\.resize_embeddings=true to add 1948 rows$"),
        ({"model_type": "t5"}, r"^model\.init \(t5\) must be a model that AutoModelForCausalLM knows"),
    ],
)
def test_bad_init(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, change: dict[str, Any], match: str
) -> None:
    init = {"model_type": "t5"} if change == {"model_type": "t5"} else {**tiny_init, **change}
    refused(ModelConfig(init=init), tokenizer, match)


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        ("gemma2", {"head_dim": 8}, "attention has a soft cap"),
        ("gemma3_text", {"head_dim": 8, "attn_logit_softcapping": 5.0}, "attention has a soft cap"),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}, "architecture has no sdpa"),
    ],
)
def test_attention_that_an_architecture_has_not(
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    more: dict[str, Any],
    why: str,
) -> None:
    """By itself it is the architecture's own, which is said; sdpa that is asked for is refused, with the way out."""
    init = {**tiny_init, "model_type": kind, **more}
    model = load_language_model(ModelConfig(init=init), tokenizer, WHOLE)
    assert model.hf.config._attn_implementation in ("eager", "auto_eager")
    assert f"model.attention: eager for model.init ({kind}), whose {why}" in " ".join(capsys.readouterr().out.split())
    config = ModelConfig(init=init, attention=Attention.sdpa)
    refused(config, tokenizer, r"^model\.attention must be eager \(or auto\) for model\.init .*, got 'sdpa'$")


def test_no_model_in_the_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for load in (load_language_model, load_scalar_model):
        refused(
            ModelConfig(path=str(tmp_path)),
            tokenizer,
            r"^model\.path: no model in .*neither model.safetensors nor",
            load,
        )


def test_config_of_an_unknown_type(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "lama"}))
    for load in (load_language_model, load_scalar_model):
        refused(
            ModelConfig(path=str(folder)),
            tokenizer,
            r"^model\.path: config.json must have a model_type .* 'lama'",
            load,
        )


def test_missing_weights_are_named(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in (load_language_model, load_scalar_model):
        message = refused(ModelConfig(path=str(folder)), tokenizer, r"^model\.path must hold all weights", load)
        assert "layers.1.mlp.up_proj.weight" in message


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_holds_no_number_is_named(
    folder: Path, tokenizer: PreTrainedTokenizerBase, number: str, dtype: torch.dtype
) -> None:
    """All losses would be none, each blamed on its step's rows; and with them left out a run would end as it began."""
    weights = {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}
    weights["model.layers.1.mlp.up_proj.weight"][-1, -1] = float(number)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in (load_language_model, load_frozen_language_model, load_scalar_model):
        message = refused(ModelConfig(path=str(folder)), tokenizer, r"^model\.path must hold weights that are", load)
        assert f"got nan or inf in model.layers.1.mlp.up_proj.weight in '{folder}'" in message


def test_a_trained_head_that_holds_no_number_is_named(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["v_head.weight"] = weights.pop("score.weight").fill_(float("nan"))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigError, match=r"^reward\.path must hold weights that are numbers, got nan or inf in score\.weight in"
    ):
        load_reward_model(ModelConfig(path=str(tmp_path)), tokenizer, WHOLE, key="reward.path")


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


def test_a_reward_model_is_no_language_model(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """One whose embeddings would be the head lacks no weight: it would train, and reply, without a word."""
    reward = load_scalar_model(ModelConfig(init={**tiny_init, "tie_word_embeddings": True}), tokenizer, WHOLE)
    save_model(reward, tokenizer, tmp_path)
    rule = r"^model\.path must be a language model, got a reward model \(LlamaForSequenceClassification\) in "
    for load in (load_language_model, load_frozen_language_model):
        refused(ModelConfig(path=str(tmp_path)), tokenizer, rule, load)


def test_a_classifier_s_folder_is_no_reward_model(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).save_pretrained(tmp_path)
    rule = r"got score\.weight of shape \[3, \d+\], not \[1, \d+\], in "
    refused(ModelConfig(path=str(tmp_path)), tokenizer, rule, load_scalar_model)


def test_an_architecture_whose_body_is_not_to_be_had_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """Llama 4's names a body that is the multimodal model's."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48, "head_dim": 8}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    init = {"model_type": "llama4_text", **sizes, **heads}
    refused(
        ModelConfig(init=init), tokenizer, r"^model\.init must have a body beneath its head, got a? ?Llama4ForCausalLM"
    )


def test_tokenizer_larger_than_the_model_s_table(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    larger = AutoTokenizer.from_pretrained(folder)
    larger.add_tokens(["<new>"])
    for load in (load_language_model, load_scalar_model):
        refused(ModelConfig(path=str(folder)), larger, r"^model\.tokenizer has 2049 pieces", load)


def test_a_language_model_is_no_reward_model(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A head drawn at random would score replies without a word: the weight, the key and the folder are named."""
    for key in ("reward.path", "critic.path", "reward.models.a.path", "gold_model"):
        with pytest.raises(ConfigError, match=rf"^{key} must hold all weights .* got no score\.weight in '{folder}'$"):
            load_reward_model(ModelConfig(path=str(folder)), tokenizer, WHOLE, key=key)
    policy = load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    with pytest.raises(ConfigError, match=r"^reward\.path .* got no score\.weight"):
        load_critic(str(folder), ModelConfig(path=str(folder)), policy, tokenizer, key="reward.path")


@pytest.mark.parametrize("name", ["v_head.summary", "value_head", "model.score", "classification_head"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_head_of_another_name(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, name: str, has_bias: bool
) -> None:
    """A linear map of the last hidden state is a scalar head whatever it is called; its bias moves all scores alike."""
    weights = load_file(folder / "model.safetensors")
    head, bias = torch.linspace(-1, 1, 32)[None], torch.tensor([0.7])
    named = {f"{name}.weight": head} | ({f"{name}.bias": bias} if has_bias else {})
    save_file(weights | named, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_reward_model(ModelConfig(path=str(folder)), tokenizer, WHOLE, key="reward.path")
    hidden = AutoModelForCausalLM.from_pretrained(folder).base_model(IDS).last_hidden_state[0, -1]
    torch.testing.assert_close(model.hf(IDS).logits[0, 0], hidden @ head[0] + (0.7 if has_bias else 0.0))
    save_model(model, tokenizer, tmp_path / "again")
    again = load_reward_model(ModelConfig(path=str(tmp_path / "again")), tokenizer, WHOLE, key="reward.path")
    torch.testing.assert_close(again.hf(IDS).logits, model.hf(IDS).logits)


def test_a_head_of_the_model_s_own_name_goes_before_others(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A critic's may lie beside a reward model's. Of several others none is the one."""
    weights, head = load_file(folder / "model.safetensors"), torch.linspace(-1, 1, 32)[None]
    other = {"v_head.summary.weight": head + 1, "v_head.summary.bias": torch.tensor([7.0])}
    save_file(weights | other | {"score.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    model: Any = load_reward_model(ModelConfig(path=str(folder)), tokenizer, WHOLE, key="reward.path").hf
    assert torch.equal(model.score.weight, head) and model.score.bias is None
    save_file(weights | other | {"value_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    refused(ModelConfig(path=str(folder)), tokenizer, "one scalar head, got v_head.summary and", load_scalar_model)


def test_a_trained_head_in_a_folder_that_calls_itself_a_language_model_is_kept(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"score.weight": torch.ones(1, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
    head: Any = load_scalar_model(ModelConfig(path=str(folder)), tokenizer, WHOLE).hf.score
    assert torch.equal(head.weight, torch.ones(1, 32))


@pytest.mark.parametrize("load", [load_language_model, load_scalar_model])
@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("config.json", b"{", r"config\.json' is no JSON"),
        ("config.json", b"[]", r"config\.json' must be a JSON object"),
        ("config.json", b'{"model_type": "llama", "hidden_size": "big"}', r"config\.json': .*hidden_size"),
        ("model.safetensors", None, r"model\.safetensors' is cut or damaged"),
        ("model.safetensors", b"", r"model\.safetensors' is cut or damaged"),
        ("pytorch_model.bin", b"no pickle", r"pytorch_model\.bin' is cut or damaged"),
        ("pytorch_model.bin", b"", r"pytorch_model\.bin' is cut or damaged"),
        ("model.safetensors.index.json", b"{", r"index\.json' is no JSON"),
        ("model.safetensors.index.json", b"{}", r"index\.json' must have a weight_map"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "b.safetensors"}}',
            r"names 'b\.safetensors', which is",
        ),
    ],
)
def test_a_damaged_file_is_named(
    folder: Path, tokenizer: PreTrainedTokenizerBase, load: Any, file: str, content: bytes | None, match: str
) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    if file != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(whole[: len(whole) // 2] if content is None else content)
    refused(ModelConfig(path=str(folder)), tokenizer, rf"^model\.path: '.*{match}", load)


def test_weights_in_pickled_files_are_read(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    model = load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    assert torch.equal(model.hf.lm_head.weight, weights["lm_head.weight"])


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gemma", "llama"])
@pytest.mark.parametrize("rest", [False, True])
def test_a_folder_without_a_tokenizer(folder: Path, kind: str, rest: bool) -> None:
    """transformers makes some architectures a tokenizer of special tokens alone, for which every text is empty."""
    config = AutoConfig.for_model(kind, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    (folder / "config.json").write_text(config.to_json_string())
    (folder / "tokenizer.json").unlink()
    if not rest:
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match=rf"^model\.tokenizer: no tokenizer in '{folder}', so name .* model\.token"):
        load_tokenizer(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_one_line(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r"^model\.tokenizer: [^\n]*tokenizer\.json[^\n]*$"):
        load_tokenizer(ModelConfig(path=str(folder)))


def test_a_dense_reward_model_is_the_critic_of_a_mixture(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """`model.router_loss` is the policy's, and stays with it."""
    save_model(load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path / "reward")
    init = {**tiny_init, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    config = ModelConfig(init=init, router_loss=0.1)
    policy = load_language_model(config, tokenizer, WHOLE)
    critic = load_critic(str(tmp_path / "reward"), config, policy, tokenizer, key="reward.path")
    assert (policy.router_weight, critic.router_weight) == (0.1, 0.0)


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


def test_a_mistake_in_init_is_found_with_the_tokenizer() -> None:
    """Before any rows are read, and any weights made."""
    with pytest.raises(ConfigError, match=r"^model\.init\.model_type .* got 'lama'$"):
        prepare_tokenizer(ModelConfig(init={"model_type": "lama"}))

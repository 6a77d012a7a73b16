"""Folders that somebody else has written: whatever is wrong in one of their files is one line that names the file."""

import json
import shutil
from collections.abc import Callable
from functools import partial
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

from alignment.config.errors import ConfigError
from alignment.config.folders import find_model
from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.files import names_in
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.models.tokenizer import prepare_tokenizer
from alignment.models.unread import check_tied, unread_of

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def good(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("foreign") / "good"
    save_model(load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def with_keys(file: str, **keys: Any) -> Change:
    def change(folder: Path) -> None:
        before = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(before | keys))

    return change


settings, config = partial(with_keys, "tokenizer_config.json"), partial(with_keys, "config.json")


def with_content(file: str, content: str | bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def with_part(part: str, value: Any) -> Change:
    """Of tokenizer.json."""
    return with_keys("tokenizer.json", **{part: value})


CLASS = "tokenizer_config.json' and the files beside it must say what goes with tokenizer.json, got tokenizer_class="
LATER = r"no tokenizer in '.*tokenizer\.json' that tokenizers [\d.]+ reads, as one of a later version is"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2117\n"
NO_JINJA = "the chat template of .*model must be a text in Jinja's language"
TOKENIZERS: dict[str, tuple[Change, str]] = {
    "class of others": (settings(tokenizer_class="BertTokenizer"), f"{CLASS}'BertTokenizer'"),
    "class, sentencepiece": (
        settings(tokenizer_class="T5Tokenizer"),
        f"{CLASS}'T5Tokenizer'",
    ),
    "class, Gemma": (settings(tokenizer_class="GemmaTokenizer"), f"{CLASS}'GemmaTokenizer'"),
    "class, not installed": (settings(tokenizer_class="CpmTokenizer"), f"{CLASS}'CpmTo"),
    "class is none": (settings(tokenizer_class=5), f"{CLASS}5 "),
    "code of its own": (
        settings(tokenizer_class="X", auto_map={"AutoTokenizer": ["x.X", None]}),
        r"tokenizer_config\.json in '.*' asks for code that comes with it .*; model\.trust_remote_code=true",
    ),
    "eos": (settings(eos_token=5), f"{CLASS}.*eos_token has to be"),
    "length": (settings(model_max_length="x"), CLASS),
    "settings cut": (with_content("tokenizer_config.json", "{"), r"tokenizer_config\.json' is no JSON"),
    "settings, a list": (with_content("tokenizer_config.json", "[]"), r"tokenizer_config\.json' must be a JSON object"),
    "added": (with_content("added_tokens.json", "[]"), r"added_tokens\.json' must be a JSON object, got list"),
    "added cut": (with_content("added_tokens.json", "{"), r"added_tokens\.json' is no JSON"),
    "map": (with_content("special_tokens_map.json", b"\xff\xfe"), r"special_tokens_map\.json' is no JSON"),
    "version": (with_part("version", "2.0"), f"{LATER} .*version '2.0'"),
    "model": (with_part("model", {"type": "Quantum", "vocab": {}}), LATER),
    "pieces": (with_part("pre_tokenizer", {"type": "Quantum"}), LATER),
    "not fetched": (
        with_content("tokenizer.json", POINTER),
        r"tokenizer\.json' is a pointer of Git LFS, .*git lfs pull",
    ),
    "template": (with_content("chat_template.jinja", "{% for m in messages %}\n{{ m }"), f"{NO_JINJA}: line 2: unexp"),
    "template not fetched": (
        with_content("chat_template.jinja", POINTER),
        r"template\.jinja' is a pointer of Git LFS, ",
    ),
    "filter": (with_content("chat_template.jinja", "{{ messages | nosuch }}"), f"{NO_JINJA}: line 1: No filter named"),
    "no template": (with_content("chat_template.jinja", " \n"), f"{NO_JINJA}, got ' "),
    "config": (
        config(rms_norm_eps="x"),
        r"config\.json': no config that .*rms_",
    ),
    "config's dtype": (
        config(dtype="float99"),
        r"config\.json': no config that transformers reads",
    ),
    "quantization": (
        config(quantization_config="x"),
        r"config\.json': no config that transformers",
    ),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_what_is_wrong_with_a_tokenizer_is_one_line(case: str, folder: Path) -> None:
    change, line = TOKENIZERS[case]
    change(folder)
    with pytest.raises(ConfigError, match=rf"^model\.tokenizer: .*{line}") as caught:
        prepare_tokenizer(ModelConfig(path=str(folder)))
    assert "\n" not in str(caught.value)


def test_special_tokens_are_never_split(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(split_special_tokens=True)(folder)
    found, again = (prepare_tokenizer(ModelConfig(path=str(folder))) for _ in range(2))
    assert " ".join(capsys.readouterr().out.split()).count("is taken for false, for a template's tokens would be") == 1
    found.save_pretrained(tmp_path / "saved")
    for each in (found, again, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert each(tokenizer.eos_token, add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


def test_several_templates_have_one_that_is_the_default(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    template = (folder / "tokenizer_config.json").read_text()
    for names, is_good in ((["default", "rag"], True), (["rag", "tools"], False)):
        several = [{"name": name, "template": "{{ messages[0]['content'] }}"} for name in names]
        (folder / "tokenizer_config.json").write_text(json.dumps(json.loads(template) | {"chat_template": several}))
        if is_good:
            prepare_tokenizer(ModelConfig(path=str(folder)))
        else:
            with pytest.raises(ConfigError, match=r"one is called default, got \['rag', 'tools'\]$"):
                prepare_tokenizer(ModelConfig(path=str(folder)))


def pickled(change: Callable[[dict[str, Any]], Any], cut: bool = False) -> Change:
    def write(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(change(weights), folder / "pytorch_model.bin")
        if cut:
            content = (folder / "pytorch_model.bin").read_bytes()
            (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])

    return write


def in_shards(lost: bool = False, **index: Any) -> Change:
    def write(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(weights)}
        for file in set(places.values()):
            part = {name: weights[name] for name, place in places.items() if place == file}
            save_file(part, folder / file, metadata={"format": "pt"})
        content = {"metadata": {}, "weight_map": places} | index
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        if lost:
            (folder / "model-00002-of-00002.safetensors").unlink()

    return write


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


BIN, INDEX, ENDS = (rf"{name}' " for name in (r"pytorch_model\.bin", r"index\.json", r"generation_config\.json"))
MODELS: dict[str, tuple[Change, str]] = {
    "unknown kind": (
        config(model_type="llama9"),
        "must have a model_type that",
    ),
    "not fetched": (with_content("model.safetensors", POINTER), r"model\.safetensors' is a pointer of Git LFS, "),
    "rope": (
        config(rope_parameters={"rope_type": "quantum", "rope_theta": 1.0}),
        "KeyError: 'quantum'",
    ),
    "padding": (config(pad_token_id=10**6), "AssertionError: Padding_idx"),
    "ends cut": (with_content("generation_config.json", "{"), f"{ENDS}is no JSON"),
    "ends, a list": (with_content("generation_config.json", "[]"), f"{ENDS}must be a JSON object"),
    "ends, no numbers": (
        with_keys("generation_config.json", eos_token_id=[1, "x"]),
        rf"eos_token_id in .*{ENDS}must be .* \[1",
    ),
    "lengths": (with_keys("generation_config.json", max_new_tokens="x"), "no model .TypeError: "),
    "cut": (pickled(lambda weights: weights, cut=True), f"{BIN}is cut or damaged"),
    "code": (pickled(lambda weights: {"a": torch.nn.Linear(2, 2)}), f"{BIN}is cut or damaged"),
    "numbers for names": (
        pickled(lambda weights: {1: torch.ones(1), **weights}),
        f"{BIN}is cut .* not all keys",
    ),
    "no names": (
        pickled(lambda weights: list(weights.values())),
        f"{BIN}is cut .*wanted, got a list",
    ),
    "shard": (in_shards(lost=True), f"{INDEX}names 'model-00002-of-00002.safetensors', which is not there"),
    "shards of numbers": (
        in_shards(weight_map={"a": 5, "b": None}),
        f"{INDEX}must have a weight_map of",
    ),
    "shards without more": (in_shards(metadata=None), f"{INDEX}must have metadata"),
    "empty": (emptied, "no config.json in"),
}


@pytest.mark.parametrize("case", MODELS)
def test_what_is_wrong_with_a_model_is_one_line(case: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    change, line = MODELS[case]
    change(folder)
    with pytest.raises(ConfigError, match=rf"^model\.path.*{line}") as caught:
        load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    assert "\n" not in str(caught.value)


def test_whole_shards_are_read(folder: Path, good: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    in_shards()(folder)
    model = load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    assert torch.equal(model.hf.lm_head.weight, load_file(good / "model.safetensors")["lm_head.weight"])


LAYER, BEYOND, PLACE = "model.layers.0.self_attn.q_proj", "model.layers.2.mlp.up_proj.weight", "model.layers.3.x.weight"
UNREAD: dict[str, tuple[list[str], str]] = {
    "biases": ([f"{LAYER[:-6]}{name}_proj.bias" for name in "qkvo"], r"4 that .*k_.*, .*q_proj\.bias, \.\.\.: "),
    "scales": ([f"{LAYER}.weight_scale"], rf"1 that would be left out, {LAYER}\.weight_scale: let config\.json"),
    "an adapter": ([f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"], f"2 that .*{LAYER}.lora_B.weight: .*adapter"),
    "layers": ([BEYOND, PLACE], f"2 that would be left out, {BEYOND}, {PLACE}: let config"),
    "of a norm": (["model.norm.bias"], "1 that would be left out, model.norm.bias: "),
    "of a body alone": (["layers.0.mlp.up_proj.bias"], "1 that would be left out, layers.0.mlp.up_proj.bias: "),
}


def add_weights(folder: Path, names: list[str]) -> None:
    weights = load_file(folder / "model.safetensors") | {name: torch.ones(2) for name in names}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("case", UNREAD)
def test_weights_without_a_place_are_told(case: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    names, line = UNREAD[case]
    add_weights(folder, names)
    for load in (load_language_model, load_scalar_model):
        with pytest.raises(ConfigError, match=rf"^model\.path '.*model' must have a place .* got none for {line}"):
            load(ModelConfig(path=str(folder)), tokenizer, WHOLE)


def test_a_head_s_bias_has_a_place_where_the_head_has(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    add_weights(folder, ["lm_head.bias"])
    load_scalar_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    with pytest.raises(ConfigError, match=r"got none for 1 that would be left out, lm_head\.bias: "):
        load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)


def test_parts_of_their_own_are_left_out_and_said(
    folder: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    """But not another task's head, and not what a model computes for itself."""
    add_weights(folder, ["v_head.summary.weight", "score.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"])
    load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    assert "left out" not in capsys.readouterr().out
    config(num_nextn_predict_layers=1)(folder)
    add_weights(folder, ["mtp.up.weight", "model.visual.blocks.0.weight", BEYOND])
    load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    said = " ".join(capsys.readouterr().out.split())
    assert "what a LlamaForCausalLM has no part for is left out, also where it is saved (3): " in said
    assert f": {BEYOND}, model.visual.blocks.0.weight, mtp.up.weight" in said
    add_weights(folder, [PLACE])
    with pytest.raises(ConfigError, match=f"got none for 1 that would be left out, {PLACE}: "):
        load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)


def test_a_config_that_asks_for_tuples_is_read(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config(return_dict=False)(folder)
    for load in (load_language_model, load_scalar_model):
        load(ModelConfig(path=str(folder)), tokenizer, WHOLE)


def test_weights_that_are_one_are_not_two(folder: Path, good: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A head beside the embeddings that it is tied to, as old files have it, is those. Another is kept as transformers
    keeps it, and cannot be sharded, where transformers leaves it out."""
    config(tie_word_embeddings=True)(folder)
    hf: Any = load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE).hf
    assert torch.equal(hf.lm_head.weight, load_file(good / "model.safetensors")["lm_head.weight"])
    assert not torch.equal(hf.lm_head.weight, hf.model.embed_tokens.weight)
    tied = type(hf)(hf.config)
    with pytest.raises(ConfigError, match=r"^a must have tie_word_embeddings=false .* lm_head\.weight is an"):
        check_tied(tied, folder, "model.path", "a")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    check_tied(tied, folder, "model.path", "a")
    hf = load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE).hf
    assert hf.lm_head.weight is hf.model.embed_tokens.weight


SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "mixtral"])
def test_the_files_tell_what_transformers_has_not_read(
    kind: str, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """As they must where weights are sharded; under the names that a model gives them."""
    init = {**SIZES.get(kind, tiny_init), "model_type": kind}
    save_model(load_language_model(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, tmp_path)
    old = ["h.0.attn.bias", "model.layers.0.block_sparse_moe.experts.0.w1.weight_scale", "decoder.layers.2.fc1.weight"]
    add_weights(tmp_path, [*old, "transformer.h.0.mlp.c_fc.lora_A.weight", f"{LAYER}.rotary_emb.inv_freq"])
    for auto in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        hf, found = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert unread_of(hf, names_in(tmp_path, "model.path")) == found["unexpected_keys"] != set()


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.path must be a model's folder, got '.*config\.json'$"):
        prepare_tokenizer(ModelConfig(path=str(folder / "config.json")))


ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"r": "x"}, "does not fit its base .TypeError"),
    "alpha": ({"lora_alpha": "x"}, "does not fit its base .TypeError"),
    "targets": ({"target_modules": 5}, "does not fit its base .TypeError"),
    "pattern": ({"rank_pattern": 5}, "does not fit its base .AttributeError"),
    "task": ({"task_type": "QUANTUM"}, r"adapter_config\.json' is no config that peft reads"),
    "no base": ({"base_model_name_or_path": ""}, "must be the folder of the adapter's base, got ''"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_what_is_wrong_with_an_adapter_is_one_line(
    case: str, good: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    keys, line = ADAPTERS[case]
    (tmp_path / "adapter").mkdir()
    own = {**ADAPTER, "base_model_name_or_path": str(good), **keys}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(own))
    layers = [f"base_model.model.model.layers.{number}.self_attn.q_proj" for number in range(2)]
    weights = {f"{layer}.lora_{part}.weight": torch.zeros(shape) for layer in layers for part, shape in SHAPES.items()}
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=rf"^model\.path: .*{line}"):
        load_language_model(ModelConfig(path=str(tmp_path / "adapter")), tokenizer, WHOLE)


SHAPES = {"A": (2, 32), "B": (32, 2)}


def test_an_adapter_of_a_base_that_was_drawn_says_where_it_was_merged(good: Path, tmp_path: Path) -> None:
    """A run of model.init leaves its adapter beneath the model, and its base nowhere."""
    shutil.copytree(good, tmp_path / "model")
    (tmp_path / "model" / "adapter").mkdir()
    (tmp_path / "model" / "adapter" / "adapter_config.json").write_text(json.dumps(ADAPTER))
    with pytest.raises(ConfigError, match=r"got None; '.*/model' is the model that it was merged into$"):
        find_model(str(tmp_path / "model" / "adapter"), "model.path")

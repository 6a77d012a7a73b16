"""`model.rope`: rotary positions that are scaled as transformers scales them, in every role, layout and folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import ConfigError
from alignment.config.generation import GenerationConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.rope import RopeConfig
from alignment.data.pack import pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.generation.generate import TransformersGenerator
from alignment.models.heads import LanguageModel
from alignment.models.init import config_of
from alignment.models.load import load_critic, load_language_model, load_scalar_model, save_model
from alignment.models.positions import max_positions
from alignment.models.readout import token_logprobs
from alignment.models.rope import rotations, scale_rope
from alignment.training.another_reference import load_reference
from alignment.training.reference import fingerprint

MADE_FOR = 16
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {**SIZES, "num_key_value_heads": 2, "initializer_range": 0.2, "max_position_embeddings": MADE_FOR}
MIXED = ["sliding_attention", "full_attention"]
FAMILIES = {
    "llama": {"model_type": "llama", **SMALL},
    "qwen2": {"model_type": "qwen2", **SMALL},
    "mistral": {"model_type": "mistral", "sliding_window": None, **SMALL},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 2, **SMALL},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 5, "layer_types": MIXED, **SMALL},
}
ROPES: dict[str, RopeConfig] = {
    "linear": RopeConfig("linear", 4.0),
    "yarn": RopeConfig("yarn", 4.0),
    "yarn, all of it": RopeConfig("yarn", 3.0, attention_factor=1.2, beta_fast=16.0, beta_slow=2.0),
    "llama3": RopeConfig("llama3", 4.0, low_freq_factor=0.5, high_freq_factor=2.0),
}
CPU = DistributedConfig(device=Device.cpu)


def examples() -> list[Example]:
    """Far beyond the positions that the models were made for."""
    draw = np.random.default_rng(0)
    sizes = [(20, 30, 8), (3, 6, 40), (50, 10, 9)]
    rows = [[draw.integers(3, 250, size).astype(np.int32) for size in row] for row in sizes]
    return [Example(prompt, (a, b), None, Source("x", n), (True, True)) for n, (prompt, a, b) in enumerate(rows)]


def saved(init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    torch.manual_seed(0)
    save_model(load_language_model(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, folder)
    return str(folder)


def read(model: LanguageModel, layout: Layout) -> list[Tensor]:
    """The log-probs of each completion's tokens, in the order of the rows."""
    with torch.no_grad():
        batch = pack(examples(), range(3), layout=layout, pad_id=0)
        return list(token_logprobs(model, batch).split(batch.lengths.tolist()))


def own_logprobs(hf: Any) -> list[Tensor]:
    """transformers alone, a text at a time."""
    found = []
    for example in examples():
        for completion in example.completion_ids:
            ids = torch.from_numpy(np.concatenate([example.prompt_ids, completion]).astype(np.int64))[None]
            with torch.no_grad():
                logits = hf(input_ids=ids, use_cache=False).logits[0, len(example.prompt_ids) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(1, ids[0, len(example.prompt_ids) :, None])[:, 0])
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ROPES)
def test_packed_separate_and_transformers_own_are_one(
    kind: str, family: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """transformers reads the folder that is saved, and the base under settings that are written by hand."""
    base, rope = saved(FAMILIES[family], tokenizer, tmp_path / "base"), ROPES[kind]
    model = load_language_model(ModelConfig(path=base, rope=rope), tokenizer, WHOLE)
    shared, separate = read(model, Layout.shared), read(model, Layout.separate)
    save_model(model, tokenizer, tmp_path / "scaled")
    mine = AutoModelForCausalLM.from_pretrained(tmp_path / "scaled")
    text = json.loads((tmp_path / "scaled" / "config.json").read_text())
    assert text["max_position_embeddings"] == MADE_FOR * rope.factor
    hand = AutoConfig.from_pretrained(base)
    own = hand.rope_parameters.get("full_attention", hand.rope_parameters)
    own |= {"rope_type": str(rope.rope_type.value), "factor": rope.factor}
    if kind != "linear":
        own["original_max_position_embeddings"] = MADE_FOR
    names = ("attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")
    own |= {name: value for name in names if (value := getattr(rope, name)) is not None}
    hand.head_dim = 8
    theirs = AutoModelForCausalLM.from_pretrained(base, config=hand)
    plain = own_logprobs(AutoModelForCausalLM.from_pretrained(base))
    for other in (separate, own_logprobs(mine), own_logprobs(theirs)):
        torch.testing.assert_close(shared, other, rtol=1e-4, atol=2e-5)
    assert max((a - b).abs().max() for a, b in zip(shared, plain, strict=True)) > 1e-2


def test_linear_puts_position_2p_where_p_was(tokenizer: PreTrainedTokenizerBase) -> None:
    plain, scaled = (
        load_language_model(ModelConfig(init=FAMILIES["llama"], rope=rope), tokenizer, WHOLE).hf.model.rotary_emb
        for rope in (RopeConfig(), RopeConfig("linear", 2.0))
    )
    here = torch.arange(10)[None]
    for one, two in zip(plain(torch.ones(1), here), scaled(torch.ones(1), 2 * here), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", ROPES)
def test_replies_are_drawn_by_the_rotations_that_are_learned_from(
    kind: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """With a cache, prompts of unequal lengths in one call, beyond the positions of before."""
    torch.manual_seed(0)
    model = load_language_model(ModelConfig(init=FAMILIES["llama"], rope=ROPES[kind]), tokenizer, WHOLE)
    model.eval()
    generator = TransformersGenerator(model, tokenizer, GenerationConfig(max_new_tokens=24, top_k=1))
    prompts = [np.arange(5, 5 + size, dtype=np.int32) for size in (3, 22, 11)]
    found = generator.generate(prompts, keys=range(3), replies=1, seed=0).replies
    for prompt, (reply,) in zip(prompts, found, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, reply.ids]).astype(np.int64))[None]
        with torch.no_grad():
            best = model.hf(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert best.tolist() == reply.ids.tolist()


def test_all_roles_that_begin_as_the_policy_are_scaled_alike(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A reward model that a critic begins as, too, and a base under an adapter."""
    base = saved(FAMILIES["llama"], tokenizer, tmp_path / "base")
    config = ModelConfig(path=base, rope=ROPES["yarn"], lora=LoraConfig(rank=2))
    save_model(load_scalar_model(ModelConfig(path=base), tokenizer, WHOLE), tokenizer, tmp_path / "judge")
    policy = load_language_model(config, tokenizer, WHOLE)
    scaled = rotations(policy.hf.config)
    assert scaled is not None and scaled["rope_type"] == "yarn"
    others = [
        load_critic(None, config, policy, tokenizer),
        load_critic(str(tmp_path / "judge"), config, policy, tokenizer),
        load_scalar_model(config, tokenizer, WHOLE),
        load_reference(base, config, tokenizer, CPU),
    ]
    for other in others:
        assert rotations(other.hf.config) == scaled
        assert torch.equal(other.hf.model.rotary_emb.inv_freq, policy.hf.model.rotary_emb.inv_freq)


def test_the_reference_s_log_probs_are_kept_by_the_scaling_too(tokenizer: PreTrainedTokenizerBase) -> None:
    names = set()
    for rope in (RopeConfig(), RopeConfig("yarn", 2.0), RopeConfig("yarn", 4.0), RopeConfig("linear", 2.0)):
        torch.manual_seed(0)
        model = load_language_model(ModelConfig(init=FAMILIES["llama"], rope=rope), tokenizer, WHOLE)
        names.add(fingerprint(model, examples(), "float32"))
    assert len(names) == 4


def test_a_model_is_not_scaled_twice(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: Any) -> None:
    base = saved(FAMILIES["llama"], tokenizer, tmp_path / "base")
    for number, rope in enumerate(ROPES.values()):
        once = load_language_model(ModelConfig(path=base, rope=rope), tokenizer, WHOLE)
        save_model(once, tokenizer, tmp_path / f"scaled-{number}")
        again = ModelConfig(path=str(tmp_path / f"scaled-{number}"), rope=rope)
        assert rotations(config_of(again)) == rotations(once.hf.config)
        assert max_positions(config_of(again)).limit == MADE_FOR * (rope.factor or 0)
        assert "has this scaling already" in capsys.readouterr().out


def test_another_scaling_is_replaced_only_by_its_word(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    base = saved(FAMILIES["llama"], tokenizer, tmp_path / "base")
    yarn, linear = RopeConfig("yarn", 2.0), RopeConfig("linear", 4.0)
    for name, rope in (("yarn", yarn), ("linear", linear)):
        save_model(load_language_model(ModelConfig(path=base, rope=rope), tokenizer, WHOLE), tokenizer, tmp_path / name)
    asked = ModelConfig(path=str(tmp_path / "yarn"), rope=linear)
    rule = r"^model\.rope\.replace must be true to put linear \(factor 4\) .* model\.path '.*', yarn \(factor 2\); .*"
    with pytest.raises(ConfigError, match=rule):
        config_of(asked)
    found = config_of(replace(asked, rope=replace(linear, replace=True)))
    assert rotations(found) == {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    assert max_positions(found).limit == 4 * MADE_FOR  # of what it was trained on, not of what it had
    asked = ModelConfig(path=str(tmp_path / "linear"), rope=replace(yarn, replace=True))
    with pytest.raises(
        ConfigError, match=r"^model\.rope\.original_max_position_embeddings must say how many positions"
    ):
        config_of(asked)  # whether a linear one's are with its factor or without, configs do not say
    given = replace(asked.rope, original_max_position_embeddings=MADE_FOR)
    assert max_positions(config_of(replace(asked, rope=given))).limit == 2 * MADE_FOR


@pytest.mark.parametrize(
    ("init", "rope", "rule"),
    [
        ({"model_type": "gpt2"}, RopeConfig("yarn", 2.0), r"must be null for a model without rotary .* \(gpt2\), got"),
        ({"model_type": "bloom"}, RopeConfig("linear", 2.0), r"must be null for a model without rotary .* \(bloom\)"),
        ({"model_type": "recurrent_gemma"}, RopeConfig("yarn", 2.0), r"must be null for a model without rotary"),
        (
            {"model_type": "phi3"},
            RopeConfig("yarn", 2.0),
            r"must be one that transformers' Phi3Config takes, got 'yarn' \(.*longrope",
        ),
        (
            FAMILIES["llama"],
            RopeConfig("yarn", 2.0, original_max_position_embeddings=4),
            r"model\.rope\.factor must reach at least the 16 positions .* from 4 on, got 2\.0",
        ),
    ],
)
def test_a_model_that_cannot_be_scaled_is_refused_before_it_is_read(
    init: dict[str, Any], rope: RopeConfig, rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        config_of(ModelConfig(init=init, rope=rope))


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, r"must be linear, yarn or llama3: .* yarn reaches as far, got 'dyn"),
        ({"rope_type": "yarn"}, r"^model\.rope\.rope_type=yarn needs model\.rope\.factor, got null"),
        ({"rope_type": "yarn", "factor": 1.0}, r"^model\.rope\.factor must be > 1 and finite, got 1\.0"),
        ({"factor": 2.0}, r"^model\.rope\.factor goes with model\.rope\.rope_type, got 2\.0"),
        ({"replace": True}, r"^model\.rope\.replace goes with model\.rope\.rope_type, got True"),
        (
            {"rope_type": "linear", "factor": 2.0, "beta_fast": 4.0},
            r"^model\.rope\.beta_fast goes with .*rope_type=yarn",
        ),
        ({"rope_type": "yarn", "factor": 2.0, "low_freq_factor": 1.0}, r"low_freq_factor goes with .*rope_type=llama3"),
        (
            {"rope_type": "yarn", "factor": 2.0, "beta_slow": 40.0},
            r"beta_fast must be > beta_slow, got \(32\.0, 40\.0\)",
        ),
        ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0}, r"low_freq_factor must be < high_freq_factor"),
        ({"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.0}, r"attention_factor must be > 0 and finite"),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}, r"embeddings must be > 0, got 0"),
    ],
)
def test_what_each_type_needs(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        RopeConfig(**settings)


def test_llama3_keeps_the_positions_that_a_model_has() -> None:
    """Llama 3.1's own: a factor of 8 from 8,192 on, for 131,072."""
    config = AutoConfig.for_model("llama", max_position_embeddings=131072)
    rope = RopeConfig("llama3", 16.0, original_max_position_embeddings=8192)
    assert max_positions(scale_rope(config, rope, "it")).limit == 131072
    rope = replace(rope, factor=32.0)
    config = AutoConfig.for_model("llama", max_position_embeddings=131072)
    assert max_positions(scale_rope(config, rope, "it")).limit == 262144

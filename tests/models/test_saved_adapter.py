"""An adapter that is trained on: the same weights as it was saved with, on its base or a named one, and the model with
it as it was for a reference."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.config.adapter import settled
from alignment.config.batch import Layout
from alignment.config.data import DataConfig, TrainSource
from alignment.config.errors import ConfigError
from alignment.config.inputs import take_models
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.online import OnlineDPOConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.supervised import DPOConfig
from alignment.config.train import TrainConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.models.adapters import adapter_off
from alignment.models.counted import Rows
from alignment.models.footprint import counted_of
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.models.readout import token_logprobs
from alignment.rl.reference import FrozenAdapter, build_reference
from alignment.tasks.max_tokens import roles_of
from alignment.training.reference import fingerprint
from tests.conftest import TINY

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])
ROW = Example(np.array([5, 6, 7, 8]), (np.array([9, 10, 2]),), None, Source("rows.jsonl", 1), (True,))
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "rslora and dora": {"r": 4, "use_rslora": True, "use_dora": True, "target_modules": "all-linear"},
    "patterns": {
        **{"r": 2, "lora_alpha": 6, "rank_pattern": {"layers.1.self_attn.q_proj": 5}},
        **{"alpha_pattern": {"v_proj": 3}, "target_modules": r".*\.1\.self_attn\.[qv]_proj"},
    },
}


@pytest.fixture(scope="module")
def base(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "model"
    init = {**TINY, "vocab_size": len(tokenizer)}
    save_model(load_language_model(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, folder)
    return folder


@pytest.fixture
def batch() -> Batch:
    return pack([ROW], [0], layout=Layout.shared, pad_id=0)


def stir(hf: Any, seed: int = 1) -> None:
    """Give the adapter that trains weights that do something; lengths stay lengths."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if ".lora_" in name and parameter.requires_grad:
                parameter.mul_(1 + 0.2 * drawn) if "magnitude" in name else parameter.copy_(0.2 * drawn)


def made(base: Path, folder: Path, **settings: Any) -> Tensor:
    """An adapter as peft trains and saves one; the logits with it."""
    hf = AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(hf, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    stir(model)
    model.save_pretrained(folder)
    return logits(model)


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf.eval()(IDS).logits


def loaded(base: Path, adapter: Path, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    return load_language_model(ModelConfig(path=str(base), adapter=str(adapter)), tokenizer, WHOLE)


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_as_it_was_saved_and_is_saved_as_peft_reads_it(
    kind: str, base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    was = made(base, tmp_path / "adapter", **KINDS[kind])
    model = loaded(base, tmp_path / "adapter", tokenizer)
    torch.testing.assert_close(logits(model.hf), was, rtol=0, atol=0)
    trained = model.trained()
    assert trained and all(".lora_" in name for name in trained)
    save_model(model, tokenizer, tmp_path / "saved")
    first, again = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("adapter", "saved/adapter"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    stir(model.hf, seed=2)
    now = logits(model.hf)
    save_model(model, tokenizer, tmp_path / "next")
    beside = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "next" / "adapter")
    torch.testing.assert_close(logits(beside), now, rtol=1e-5, atol=1e-5)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "next")
    torch.testing.assert_close(logits(merged), now, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_its_reference_is_the_model_with_the_adapter_as_it_was(
    kind: str, base: Path, tokenizer: PreTrainedTokenizerBase, batch: Batch, tmp_path: Path
) -> None:
    """And not the bare base. The policy trains the same weights whether the reference was asked or not."""
    made(base, tmp_path, **KINDS[kind])
    policy = loaded(base, tmp_path, tokenizer)
    before, trained = token_logprobs(policy, batch), list(policy.trained())
    reference = build_reference(policy)
    assert isinstance(reference, FrozenAdapter)
    assert torch.equal(reference.logprobs(batch, 1.0), before)
    stir(policy.hf, seed=2)
    assert torch.equal(reference.logprobs(batch, 1.0), before)
    with adapter_off(policy.hf):
        bare = token_logprobs(policy, batch)
    assert min((bare - before).abs().max(), (token_logprobs(policy, batch) - before).abs().max()) > 0.01
    assert list(policy.trained()) == trained and not any(".reference." in name for name in trained)
    save_model(policy, tokenizer, tmp_path / "saved")
    assert not any("reference" in name for name in load_file(tmp_path / "saved" / "adapter/adapter_model.safetensors"))


def test_log_probs_that_are_kept_are_of_the_adapter_too(
    base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made(base, tmp_path / "one", **KINDS["plain"])
    first = loaded(base, tmp_path / "one", tokenizer)
    name = fingerprint(first, [ROW], "float32")
    assert fingerprint(loaded(base, tmp_path / "one", tokenizer), [ROW], "float32") == name
    stir(first.hf, seed=2)
    bare = load_language_model(ModelConfig(path=str(base), lora=LoraConfig(rank=4)), tokenizer, WHOLE)
    assert len({name, fingerprint(first, [ROW], "float32"), fingerprint(bare, [ROW], "float32")}) == 3


def test_a_reward_model_goes_on_with_its_head(base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    config = ModelConfig(path=str(base), lora=LoraConfig(rank=4))
    model = load_scalar_model(config, tokenizer, WHOLE)
    stir(model.hf)
    save_model(model, tokenizer, tmp_path)
    again = load_scalar_model(ModelConfig(path=str(base), adapter=str(tmp_path / "adapter")), tokenizer, WHOLE)
    assert torch.equal(logits(again.hf), logits(model.hf))
    assert {name for name in again.trained() if ".lora_" not in name} == {"hf.score.weight"}
    with pytest.raises(ConfigError, match=r"trained with weights beside LoRA .*score\.weight$"):
        loaded(base, tmp_path / "adapter", tokenizer)


def config_of(**model: Any) -> DPOConfig:
    data = DataConfig(train=TrainSource(path="rows.jsonl"))
    return DPOConfig(model=ModelConfig(**model), data=data, train=TrainConfig(learning_rate=1e-4, max_steps=1))


def test_its_shape_and_its_base_are_its_own(base: Path, tmp_path: Path) -> None:
    made(base, tmp_path / "run" / "model" / "adapter", **KINDS["plain"])
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    run = ModelConfig(adapter=str(tmp_path / "run"))
    take_models(run)
    adapter = str(tmp_path / "run" / "model" / "adapter")
    assert run.adapter == adapter
    found = settled(config_of(adapter=adapter, lora=LoraConfig(plus=4.0))).model
    assert found.path == str(base)
    assert found.lora == LoraConfig(rank=4, alpha=8, rslora=False, plus=4.0, targets=["down_proj", "q_proj"])
    assert settled(config_of(adapter=adapter, lora=found.lora)).model == found
    for given, line in (
        ({"rank": 16}, r"model\.lora\.rank must be left out beside model\.adapter, whose own is 4 .*, got 16"),
        ({"alpha": 32}, r"model\.lora\.alpha must be left out .* own is 8 .*, got 32"),
        ({"targets": ["v_proj"]}, r"model\.lora\.targets must be left out .*, got \['v_proj'\]"),
        ({"dora": True}, r"model\.lora\.dora must be left out .* own is False .*, got True"),
    ):
        with pytest.raises(ConfigError, match=line):
            settled(config_of(adapter=adapter, lora=LoraConfig(**given)))


def test_a_plan_counts_it_as_a_new_one_and_a_copy_for_the_reference(
    base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(base, tmp_path / "adapter", **KINDS["plain"])
    new = config_of(path=str(base), lora=LoraConfig(rank=4, alpha=8, targets=["q_proj", "down_proj"]))
    saved = settled(config_of(adapter=str(tmp_path / "adapter")))
    first, second = (next(iter(roles_of(each))) for each in (new, saved))
    counts = [counted_of(role, Rows(4, 4), torch.float32, Layout.separate) for role in (first, second)]
    assert counts[0].trained == counts[1].trained > 0 and counts[0].frozen == counts[1].frozen
    assert [role.copies for role in (first, second)] == [0, 0]
    online = {"data": saved.data, "train": saved.train, "reward": RewardShapingConfig(function="toy.gold")}
    found = [list(roles_of(OnlineDPOConfig(model=each.model, **online))) for each in (new, saved)]
    assert [[role.copies for role in roles] for roles in found] == [[0], [1]]
    embeddings = replace(new.model, lora=replace(new.model.lora, modules_to_save=["embed_tokens"]))
    counted = counted_of(replace(first, settings=embeddings), Rows(4, 4), torch.float32, Layout.separate)
    size = 4.0 * TINY["hidden_size"] * len(tokenizer)
    assert (counted.trained - counts[0].trained, counts[0].frozen - counted.frozen) == (size, size)
    assert next(iter(roles_of(OnlineDPOConfig(model=embeddings, **online)))).copies == 1
    shutil.copytree(base, tmp_path / "elsewhere")
    moved = replace(second, settings=replace(second.settings, path=str(tmp_path / "elsewhere")))
    assert counted_of(moved, Rows(4, 4), torch.float32, Layout.separate).trained == counts[0].trained
    assert f"(it names {base} as its base)" in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_trained_on_is_refused(base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    made(base, tmp_path, **KINDS["plain"])
    weights, file = load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors"
    own = json.loads((tmp_path / "adapter_config.json").read_text())

    def told(given: dict[str, Tensor], **settings: Any) -> str:
        save_file({name: weight.contiguous() for name, weight in given.items()}, file)
        (tmp_path / "adapter_config.json").write_text(json.dumps(own | settings))
        with pytest.raises(ConfigError) as error:
            loaded(base, tmp_path, tokenizer)
        return str(error.value)

    name = next(name for name in weights if "q_proj.lora_A" in name)
    plain = name.removeprefix("base_model.model.")
    wide = weights | {name: torch.zeros(4, 64)}
    assert told(wide).endswith(f"its {plain} is of shape [4, 64], where the model takes [4, 32]")
    assert told({each: weights[each] for each in weights if each != name}).endswith(f"it has no {plain}")
    assert told(weights | {name: weights[name] / 0}).endswith(f"got nan or inf in {plain}")
    assert "path_initial_model_for_weight_conversion" in told(weights, init_lora_weights="pissa_niter_4")
    assert "must be of an adapter that is LoRA alone, without bias, got 'all'" in told(weights, bias="all")
    assert "target_modules in" in told(weights, target_modules=["nowhere"])
    (tmp_path / "adapter_config.json").write_text(json.dumps(own))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ConfigError, match=r"is cut or damaged"):
        loaded(base, tmp_path, tokenizer)

"""In which dtype weights are saved: the one that the model came in."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.config.model import LoraConfig, ModelConfig
from alignment.distributed.placement import WHOLE, Whole
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.models.scalar_head import scalar_head

IDS = torch.tensor([[5, 6, 7, 8, 2]])


@pytest.fixture
def folder(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A language model's folder, in float32."""
    torch.manual_seed(0)
    save_model(load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float32"
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_saved_in_the_dtype_that_the_model_came_in(
    dtype: torch.dtype, folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Untrained they are the same file, however often it is saved; what was learned is rounded once."""
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    came, word = load_file(folder / "model.safetensors"), str(dtype).removeprefix("torch.")
    model = load_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    for again in ("first", "second"):
        save_model(model, tokenizer, tmp_path / again)
        saved = load_file(tmp_path / again / "model.safetensors")
        assert saved.keys() == came.keys() and {weight.dtype for weight in saved.values()} == {dtype}
        assert all(torch.equal(saved[name], came[name]) for name in came)
        assert json.loads((tmp_path / again / "config.json").read_text())["dtype"] == word
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1e-4
    save_model(model, tokenizer, tmp_path / "trained")
    trained = load_file(tmp_path / "trained" / "model.safetensors")
    assert all(torch.equal(trained[name], (came[name].float() + 1e-4).to(dtype)) for name in came)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "trained", dtype="auto").dtype == dtype


def test_whoever_may_read_a_model_s_config_may_read_its_weights(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """safetensors makes its files for their owner alone."""
    before = os.umask(0o027)
    try:
        adapted = ModelConfig(path=str(folder), lora=LoraConfig(rank=2))
        save_model(load_language_model(adapted, tokenizer, WHOLE), tokenizer, tmp_path / "again")
    finally:
        os.umask(before)
    files = [each for each in (tmp_path / "again").rglob("*") if each.is_file()]
    assert {"model.safetensors", "adapter_model.safetensors"} <= {each.name for each in files}
    assert {each.stat().st_mode & 0o777 for each in files} == {0o640}


def test_a_scalar_head_stays_float32(folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    reward = load_scalar_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    save_model(reward, tokenizer, tmp_path / "reward")
    saved = load_file(tmp_path / "reward" / "model.safetensors")
    assert torch.equal(saved.pop("score.weight"), scalar_head(reward.hf).weight)
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    again = load_scalar_model(ModelConfig(path=str(tmp_path / "reward")), tokenizer, WHOLE)
    assert torch.equal(scalar_head(again.hf).weight, scalar_head(reward.hf).weight)


def test_what_is_tied_is_saved_once(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = ModelConfig(init=tiny_init | {"tie_word_embeddings": True})
    save_model(load_language_model(settings, tokenizer, WHOLE), tokenizer, tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = load_language_model(ModelConfig(path=str(tmp_path)), tokenizer, WHOLE)
    save_model(model, tokenizer, tmp_path / "again")
    came, saved = (load_file(each / "model.safetensors") for each in (tmp_path, tmp_path / "again"))
    assert "lm_head.weight" not in saved and saved.keys() == came.keys()


def test_an_adapter_is_saved_in_it_too_and_added_up_in_float32(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Its base is held in bfloat16. peft loads it on that base."""
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    settings = ModelConfig(path=str(folder), lora=LoraConfig(rank=4))
    model = load_language_model(settings, tokenizer, Whole(torch.bfloat16))
    with torch.no_grad():
        for weight in model.trained().values():
            weight += 0.01
    save_model(model, tokenizer, tmp_path)
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in adapter.values()} == {torch.bfloat16}
    name = "model.layers.0.self_attn.q_proj"
    layer: Any = model.hf.get_submodule(name)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = layer.base_layer.weight.float() + (b @ a) * layer.scaling["default"]
    found = load_file(tmp_path / "model.safetensors")[f"{name}.weight"]
    assert torch.equal(found, wanted.bfloat16())
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with_peft = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(with_peft(IDS).logits, merged(IDS).logits, rtol=0.02, atol=0.1)

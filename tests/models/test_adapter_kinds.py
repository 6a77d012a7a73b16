"""Scaled by the rank or its root, with lengths of their own, drawn normally: adapters of each kind are nothing at
first, are merged as they act, and are saved as peft reads them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, LoraInit, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.adapters import DEFAULT, adapter_off, lora_layers
from alignment.models.load import load_language_model, save_model
from alignment.models.lora import AdapterShape, read_adapter, shape_of_adapter

KINDS: dict[str, dict[str, Any]] = {
    "rslora": {},
    "by the rank": {"rslora": False},
    "dora": {"dora": True},
    "gaussian": {"init": LoraInit.gaussian},
    "all": {"alpha": 6, "dora": True, "init": LoraInit.gaussian},
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])


@pytest.fixture(params=KINDS)
def adapted(request: pytest.FixtureRequest, base: Path, tokenizer: PreTrainedTokenizerBase) -> Any:
    lora = LoraConfig(rank=4, **KINDS[request.param])
    torch.manual_seed(1)
    return load_language_model(ModelConfig(path=str(base), lora=lora), tokenizer, WHOLE)


def stir(model: nn.Module) -> None:
    """Give the adapter weights that do something; lengths stay lengths."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if ".lora_magnitude" in name:
                parameter.mul_(1 + 0.2 * drawn)
            elif ".lora_" in name:
                parameter.copy_(0.1 * drawn)


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf.eval()(IDS).logits


def test_a_new_one_changes_nothing(adapted: Any, base: Path) -> None:
    plain = logits(AutoModelForCausalLM.from_pretrained(base))
    torch.testing.assert_close(logits(adapted.hf), plain, rtol=1e-5, atol=1e-5)
    stir(adapted)
    assert (logits(adapted.hf) - plain).abs().max() > 0.05
    with adapter_off(adapted.hf):
        torch.testing.assert_close(logits(adapted.hf), plain)


def test_all_of_it_trains(adapted: Any) -> None:
    adapted.hf.train()(IDS).logits.square().sum().backward()
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert {name for name, p in adapted.named_parameters() if p.grad is not None} == trained


def test_merged_and_apart_it_is_the_same(
    adapted: Any, base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """As transformers reads the merged model, peft the adapter, and we the adapter's folder as a model."""
    stir(adapted)
    on = logits(adapted.hf)
    save_model(adapted, tokenizer, tmp_path / "saved")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(merged), on, rtol=1e-4, atol=1e-5)
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "saved" / "adapter")
    torch.testing.assert_close(logits(beside), on, rtol=1e-5, atol=1e-5)
    again = load_language_model(ModelConfig(path=str(tmp_path / "saved" / "adapter")), tokenizer, WHOLE)
    torch.testing.assert_close(logits(again.hf), on, rtol=1e-4, atol=1e-5)


def test_the_root_of_the_rank(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """alpha / sqrt(16) with alpha = 16 is 4, and not 1; the shape of an adapter remembers which. The default is 2."""
    for rslora, scaling in ((True, 4.0), (False, 1.0)):
        lora = LoraConfig(rank=16, alpha=16, rslora=rslora)
        model = load_language_model(ModelConfig(init=tiny_init, lora=lora), tokenizer, WHOLE)
        assert {layer.scaling[DEFAULT] for layer in lora_layers(model.hf)} == {scaling}
        assert shape_of_adapter(model.hf) == AdapterShape(16, 16, rslora)
    model = load_language_model(ModelConfig(init=tiny_init, lora=LoraConfig(rank=16)), tokenizer, WHOLE)
    assert {layer.scaling[DEFAULT] for layer in lora_layers(model.hf)} == {2.0}


def test_gaussian_has_the_standard_deviation_of_one_by_the_rank(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(rank=8, init=LoraInit.gaussian)
    model = load_language_model(ModelConfig(init=tiny_init, lora=lora), tokenizer, WHOLE)
    drawn = torch.cat([layer.lora_A[DEFAULT].weight.flatten() for layer in lora_layers(model.hf)])
    assert drawn.std().item() == pytest.approx(1 / 8, rel=0.05)


def test_what_is_saved_tells_its_scale(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for name, more in KINDS.items():
        model = load_language_model(ModelConfig(init=tiny_init, lora=LoraConfig(rank=4, **more)), tokenizer, WHOLE)
        save_model(model, tokenizer, tmp_path / name)
    assert read_adapter(tmp_path / "rslora" / "adapter").shape == AdapterShape(4, 8, rslora=True)
    assert read_adapter(tmp_path / "by the rank" / "adapter").shape == AdapterShape(4, 8, rslora=False)
    with pytest.raises(ConfigError, match=r"needs an adapter without DoRA \(model\.lora\.dora\), got '.*dora/adapter'"):
        read_adapter(tmp_path / "dora" / "adapter")

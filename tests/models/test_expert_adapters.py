"""Adapters on the experts of a mixture, which are stacks of matrices: peft's own, saved as peft reads them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.data.pack import pack
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.losses import CrossEntropyLoss
from alignment.models.adapters import adapter_off, is_of_experts, lora_layers
from alignment.models.load import load_language_model, save_model
from alignment.models.readout import token_logprobs
from alignment.training.objectives import SFT
from alignment.training.step import train_step

STACKS = ["experts.gate_up_proj", "experts.down_proj"]
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])


@pytest.fixture(params=FAMILIES)
def mixture(
    request: pytest.FixtureRequest, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Path:
    torch.manual_seed(0)
    init = {**tiny_init, **FAMILIES[request.param], "model_type": request.param}
    save_model(load_language_model(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, tmp_path / "base")
    return tmp_path / "base"


def lora(**more: Any) -> LoraConfig:
    return LoraConfig(rank=3, rslora=True, target_parameters=STACKS, **more)


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf.eval()(IDS).logits


def test_they_train_in_every_layout_and_are_saved_as_peft_and_transformers_read_them(
    mixture: Path, pairs: list[Example], tokenizer: PreTrainedTokenizerBase, engine_of: Any, tmp_path: Path
) -> None:
    """A router that trains whole beside them too. A batch of packed rows gives what each row gives alone."""
    config = ModelConfig(path=str(mixture), lora=lora(modules_to_save=["gate"]), router_loss=0.1)
    model = load_language_model(config, tokenizer, WHOLE)
    before, first = logits(model.hf), dict(model.named_parameters())
    assert len([layer for layer in lora_layers(model.hf) if is_of_experts(layer)]) == 4  # of two layers
    down = next(layer.lora_A["default"].weight for layer in lora_layers(model.hf) if is_of_experts(layer))
    assert down.shape[0] == 3 * 4 and down.dtype == torch.float32
    torch.testing.assert_close(before, logits(AutoModelForCausalLM.from_pretrained(mixture)))
    was = {name: weight.detach().clone() for name, weight in first.items()}
    batches = [pack(pairs, range(len(pairs)), layout=each, pad_id=0) for each in (Layout.shared, Layout.separate)]
    engine = engine_of(model)
    for _ in range(2):  # B is 0 before the first
        train_step(engine, SFT(CrossEntropyLoss()), batches[:1])
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, was[name])}
    assert moved == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert any(".experts." in name for name in moved) and any(".gate." in name for name in moved)
    with torch.no_grad():
        one, other = (token_logprobs(model, batch) for batch in batches)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    now = logits(model.hf)
    assert (now - before).abs().max() > 1e-3
    save_model(model, tokenizer, tmp_path / "saved")
    torch.testing.assert_close(logits(model.hf), now, rtol=0, atol=0)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), now)
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(mixture), tmp_path / "saved" / "adapter")
    torch.testing.assert_close(logits(beside), now)
    merged = load_language_model(ModelConfig(path=str(tmp_path / "saved" / "adapter")), tokenizer, WHOLE)
    torch.testing.assert_close(logits(merged.hf), now)


def test_without_them_the_model_is_its_base(mixture: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_language_model(ModelConfig(path=str(mixture), lora=lora()), tokenizer, WHOLE)
    before = logits(model.hf)
    with torch.no_grad():
        for layer in lora_layers(model.hf):
            layer.lora_B["default"].weight.normal_()
    assert not torch.allclose(logits(model.hf), before, atol=1e-3)
    with adapter_off(model.hf):
        assert torch.equal(logits(model.hf), before)


def test_what_is_no_stack_of_experts_is_refused(mixture: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("experts.up_proj", "gate.weight"):
        asked = LoraConfig(rank=3, target_parameters=[name])
        rule = r"^model\.lora\.target_parameters must be weights that hold all experts of a layer, got "
        with pytest.raises(ConfigError, match=rf"{rule}'{name}'; it has experts\.down_proj, experts\.gate_up_proj$"):
            load_language_model(ModelConfig(path=str(mixture), lora=asked), tokenizer, WHOLE)

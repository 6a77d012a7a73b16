"""A base that bitsandbytes has quantised: an adapter is trained on it, and the whole is saved in whole weights."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bitsandbytes.functional import dequantize_blockwise
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)

from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.distributed.sharded import placement_of
from alignment.models.adapters import adapter_off
from alignment.models.load import (
    load_frozen_language_model,
    load_frozen_reward_model,
    load_language_model,
    load_reward_model,
    load_scalar_model,
    save_model,
)
from alignment.models.quantized import is_quantized, keep_packing, whole_weight
from alignment.models.scalar_head import scalar_head

IDS = torch.tensor([[5, 6, 7, 8, 2]])
PLACEMENT = placement_of(DistributedConfig())  # as a run has it
METHODS = {
    "4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}


def quantised(
    folder: Path,
    init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    hidden: int = 64,
) -> Path:
    """A model's folder whose config asks for the quantisation, and whose weights are packed as transformers packs them
    where they can be."""
    torch.manual_seed(0)
    wide = {**init, "hidden_size": hidden, "intermediate_size": 128, "initializer_range": 0.05}
    save_model(load_language_model(ModelConfig(init=wide), tokenizer, WHOLE), tokenizer, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    if settings["quant_method"] == "bitsandbytes":
        (folder / "config.json").write_text(json.dumps(config))
        packed = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**settings))
        packed.save_pretrained(folder)
    return folder


def as_read(model: Any) -> Any:
    """What transformers alone computes, with weights packed as they were read: see `keep_packing`."""
    keep_packing(model)
    return model


@pytest.mark.parametrize("hidden", [32, 64])
def test_a_look_that_learns_nothing_leaves_a_gradient_to_all_layers(
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    hidden: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an evaluation among steps is one. bitsandbytes has another packing for it on some CPUs, without a backward."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    base = quantised(tmp_path / "base", tiny_init, tokenizer, METHODS["4 bits"], hidden)
    config = ModelConfig(path=str(base), lora=LoraConfig(rank=4))
    model = load_language_model(config, tokenizer, PLACEMENT)
    whole = load_language_model(ModelConfig(path=str(base), lora=LoraConfig(rank=4)), tokenizer, PLACEMENT)
    with torch.no_grad():
        for layer in (module for module in whole.modules() if is_quantized(module)):
            layer.forward = partial(nn.functional.linear, weight=whole_weight(layer), bias=layer.bias)
        for one, other in zip(model.trained().values(), whole.trained().values(), strict=True):
            other.copy_(one.normal_(std=0.1))
    model.eval()
    with torch.no_grad():
        model.hf(IDS)
    for each in (model, whole):
        each.train()
        each.hf(IDS).logits.square().mean().backward()
    for name, parameter in model.trained().items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
        torch.testing.assert_close(parameter.grad, whole.trained()[name].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj"]])
def test_an_adapter_on_a_quantised_base(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path, method: str, targets: list[str]
) -> None:
    base = quantised(tmp_path / "base", tiny_init, tokenizer, METHODS[method])
    config = ModelConfig(path=str(base), lora=LoraConfig(rank=4, targets=targets))
    model = load_language_model(config, tokenizer, PLACEMENT)
    with adapter_off(model.hf), torch.no_grad():
        plain = as_read(AutoModelForCausalLM.from_pretrained(base))(IDS).logits
        torch.testing.assert_close(model.hf(IDS).logits, plain, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    on = model.hf(IDS).logits
    assert (on - plain).abs().max() > 0.02
    on.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(model.trained())
    save_model(model, tokenizer, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    near = 1e-3 if method == "4 bits" else 0.05  # 8 bits round what a layer reads, too
    torch.testing.assert_close(merged(IDS).logits, on, rtol=near, atol=near)
    adapted = as_read(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out/adapter"))
    torch.testing.assert_close(adapted(IDS).logits, on, rtol=1e-3, atol=1e-3)


def test_a_reward_model_on_a_quantised_base(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    base = quantised(tmp_path / "base", tiny_init, tokenizer, METHODS["4 bits"])
    model = load_scalar_model(ModelConfig(path=str(base), lora=LoraConfig(rank=4)), tokenizer, PLACEMENT)
    assert "hf.score.weight" in model.trained()
    save_model(model, tokenizer, tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(plain(IDS).logits, model.hf(IDS).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "rank", "zero", "match"),
    [
        (METHODS["4 bits"], 0, None, r"^model\.lora\.rank must be > 0 for model\.path .*, got 0$"),
        (METHODS["8 bits"], 4, 3, r"^distributed\.zero must be null, 0, 1 or 2 for model\.path .* 8 bits: .*, got 3$"),
        ({"quant_method": "gptq", "bits": 4}, 4, None, r"quantized by bitsandbytes, got quant_method='gptq'$"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    settings: dict[str, Any],
    rank: int,
    zero: int | None,
    match: str,
) -> None:
    base = quantised(tmp_path / "base", tiny_init, tokenizer, settings)
    config = ModelConfig(path=str(base), lora=LoraConfig(rank=rank))
    with pytest.raises(ConfigError, match=match):
        load_language_model(config, tokenizer, placement_of(DistributedConfig(zero=zero)))


@pytest.mark.parametrize("method", METHODS)
def test_quantised_weights_that_only_reply_or_score_are_read_as_they_are(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path, method: str
) -> None:
    """A policy in rejection sampling or an evaluation, a reward model: no adapter, and no second rounding."""
    narrow = placement_of(DistributedConfig(device=Device.cpu, precision=Precision.bfloat16))
    base = quantised(tmp_path / "base", tiny_init, tokenizer, METHODS[method])
    plain = as_read(AutoModelForCausalLM.from_pretrained(base))
    for placement, near in ((PLACEMENT, 1e-3), (narrow, 0.05)):
        model = load_frozen_language_model(ModelConfig(path=str(base)), tokenizer, placement)
        assert not any(weight.requires_grad for weight in model.parameters())
        for name, weight in plain.state_dict().items():
            assert weight.dtype.is_floating_point or torch.equal(weight, model.hf.state_dict()[name])
        assert model.hf.lm_head.weight.dtype == placement.compute  # as that of any frozen model
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=placement is narrow):
            torch.testing.assert_close(model.hf(IDS).logits, plain(IDS).logits, rtol=near, atol=near)

    reward = load_scalar_model(ModelConfig(path=str(base), lora=LoraConfig(rank=4)), tokenizer, PLACEMENT)
    save_model(reward, tokenizer, tmp_path / "whole")
    packed = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "whole",
        quantization_config=BitsAndBytesConfig(**METHODS[method], llm_int8_skip_modules=["score"]),
    )
    as_read(packed).save_pretrained(tmp_path / "reward")
    config = ModelConfig(path=str(tmp_path / "reward"))
    judge = load_frozen_reward_model(config, tokenizer, narrow, key="reward.path")
    with torch.no_grad():
        torch.testing.assert_close(judge.hf(IDS).logits, packed(IDS).logits, rtol=1e-3, atol=1e-3)
    assert scalar_head(judge.hf).weight.dtype == torch.float32
    with pytest.raises(ConfigError, match=r"^model\.lora\.rank must be > 0 for critic\.path .*, got 0$"):
        load_reward_model(config, tokenizer, PLACEMENT, key="critic.path")
    if method == "8 bits":
        with pytest.raises(ConfigError, match=r"^distributed\.zero must be null, 0, 1 or 2 for reward\.path .* got 3$"):
            load_frozen_reward_model(config, tokenizer, placement_of(DistributedConfig(zero=3)), key="reward.path")


@pytest.mark.parametrize("shape", [(128, 352), (24, 96), (3, 50), (64, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_of_4_bits_is_its_codes_times_the_scales_of_their_blocks(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Whether or not rows are whole numbers of blocks; unpacked, and in products that learn and that do not."""
    torch.manual_seed(0)
    layer = Linear4bit(shape[1], shape[0], bias=False, compute_dtype=dtype, quant_type="nf4")
    layer.weight = Params4bit(torch.randn(shape, dtype=dtype), requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu")
    keep_packing(layer)
    state, codes = layer.weight.quant_state, layer.weight.data.flatten()
    numbers = state.code[torch.stack([codes >> 4, codes & 15], dim=1).flatten().long()][: shape[0] * shape[1]]
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    want = (numbers * scales.repeat_interleave(64)[: len(numbers)]).view(shape)
    assert torch.equal(whole_weight(layer), want.to(dtype))
    inputs = torch.randn(5, shape[1], dtype=dtype, requires_grad=True)
    made, product = layer(inputs), inputs @ want.to(dtype).T
    torch.testing.assert_close(made, product)
    (found,), (wanted,) = (torch.autograd.grad(each.sum(), inputs) for each in (made, product))
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(inputs), product)
    with FlopCounterMode(display=False):  # one of those through which torch calls an operator by its name
        layer(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, wanted)

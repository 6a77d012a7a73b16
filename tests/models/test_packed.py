"""`model.quantization`: a base in whole weights is packed as it is read, as transformers' own settings pack it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerBase

from alignment.cli.compose import composing, resolve, single
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig, Quantization
from alignment.config.packages import require_packages
from alignment.distributed.placement import WHOLE
from alignment.distributed.sharded import placement_of
from alignment.models.adapters import adapter_off
from alignment.models.allocations import Allocations
from alignment.models.counted import Role, Rows
from alignment.models.footprint import footprint_of
from alignment.models.load import load_language_model, save_model
from alignment.models.packed import packed_bytes
from alignment.models.quantized import keep_packing, packed_layers

IDS = torch.tensor([[5, 6, 7, 8, 2]])
PLACEMENT = placement_of(DistributedConfig())
ASKED: dict[Quantization, dict[str, Any]] = {
    Quantization.nf4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    Quantization.int8: {"load_in_8bit": True},
}


@pytest.fixture
def base(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> ModelConfig:
    """A folder of whole weights, to be packed in 4 bits."""
    torch.manual_seed(0)
    wide = {**tiny_init, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "initializer_range": 0.05}
    save_model(load_language_model(ModelConfig(init=wide), tokenizer, WHOLE), tokenizer, tmp_path / "base")
    return ModelConfig(path=str(tmp_path / "base"), quantization=Quantization.nf4, lora=LoraConfig(rank=4))


@pytest.mark.parametrize("quantization", ASKED)
def test_codes_and_scales_are_those_that_transformers_makes(
    base: ModelConfig, tokenizer: PreTrainedTokenizerBase, quantization: Quantization
) -> None:
    model = load_language_model(replace(base, quantization=quantization), tokenizer, PLACEMENT)
    theirs = AutoModelForCausalLM.from_pretrained(
        base.path, quantization_config=BitsAndBytesConfig(**ASKED[quantization])
    )
    keep_packing(theirs)
    whole = {name: each for name, each in model.hf.state_dict().items() if "lora" not in name}
    own = {name.replace(".base_layer.", "."): each for name, each in whole.items()}
    assert own.keys() == theirs.state_dict().keys()
    for name, each in theirs.state_dict().items():
        assert torch.equal(own[name], each), name
    names = {name.rpartition(".")[2] for name, _ in packed_layers(theirs)}
    assert names == {*(f"{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down"))}
    with torch.no_grad(), adapter_off(model.hf):
        torch.testing.assert_close(model.hf(IDS).logits, theirs(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize("quantization", ASKED)
def test_packed_layers_compute_and_give_what_autocast_asks_for(
    base: ModelConfig, tokenizer: PreTrainedTokenizerBase, quantization: Quantization
) -> None:
    """As other layers do: outputs in float32 would be twice the memory, and no kernel of attention's takes them."""
    narrow = placement_of(DistributedConfig(device=Device.cpu, precision=Precision.bfloat16))
    model = load_language_model(replace(base, quantization=quantization), tokenizer, narrow)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.hf(IDS).logits
        for _, layer in packed_layers(model.hf):
            assert layer(torch.ones(1, layer.in_features)).dtype == torch.bfloat16
    logits.float().square().mean().backward()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in model.trained().values())
    whole = load_language_model(replace(base, quantization=Quantization.none), tokenizer, narrow)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert 0 < (whole.hf(IDS).logits - logits).abs().mean() < 0.2 * logits.abs().mean()


def test_one_weight_after_the_other_is_whole(base: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """On the device where the model goes: the meta device stands for another than that of the files' pages."""
    with Allocations([]) as counted:
        model = load_language_model(base, tokenizer, PLACEMENT)
    rest = sum(each.numel() * 4 for name, each in model.hf.named_parameters() if each.is_floating_point())
    layers = [layer for _, layer in packed_layers(model.hf)]
    whole = sum(layer.in_features * layer.out_features * 4 for layer in layers)
    assert counted.highest < 2.2 * rest + 0.5 * whole  # heads are drawn before they are read


@pytest.mark.parametrize("settings", [*ASKED.values(), {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}])
def test_bytes_of_packed_weights(base: ModelConfig, settings: dict[str, Any]) -> None:
    packed = AutoModelForCausalLM.from_pretrained(base.path, quantization_config=BitsAndBytesConfig(**settings))
    for _, module in packed_layers(packed):
        layer: Any = module
        parts = [each for name, each in layer.state_dict().items() if "quant_state" not in name and each.ndim]
        state = vars(layer.weight).get("quant_state")
        parts += [] if state is None or not state.nested else [state.offset]
        size = sum(each.numel() * each.element_size() for each in parts)
        assert size == packed_bytes(settings, layer.out_features, layer.in_features)


PACKED = ["model.quantization=nf4", "model.lora.rank=4"]
INT8 = ["model.quantization=int8", "model.lora.rank=4"]
NEEDS_ADAPTER = r"^model\.lora\.rank must be > 0 with model\.quantization=nf4: packed weights do not train.*, got 0$"


def composed(*words: str) -> Any:
    with composing([], "tiny_dpo"):
        return resolve(single("tiny_dpo", [*words]))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["model.path=x", "model.quantization=nf4"], NEEDS_ADAPTER),
        (["model.path=x", *INT8, "distributed=zero3"], r"^distributed\.zero must be null, 0, 1 or 2 with .*, got 3$"),
        (PACKED, r"^model\.quantization goes with model\.path: .*, got 'nf4'$"),
    ],
)
def test_what_does_not_go_together_is_one_line(words: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        composed(*words)


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("model.path=x", *PACKED)
    monkeypatch.setattr("alignment.config.packages.is_installed", lambda package: package != "bitsandbytes")
    way = r"^model\.quantization=nf4 needs bitsandbytes, which is not installed: pip install .*\[quantization\]'$"
    with pytest.raises(ConfigError, match=way):
        require_packages(config)


def test_a_base_that_cannot_be_packed_is_one_line(base: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    assert base.path is not None
    folder = Path(base.path)
    name, weights = "model.layers.1.mlp.up_proj.weight", load_file(folder / "model.safetensors")
    for broken, match in (
        (weights[name].index_fill(1, torch.tensor([3]), torch.nan), rf"got nan or inf in {name} in "),
        (weights[name][:, :32].contiguous(), rf"got {name} of shape \[192, 32\], not \[192, 64\], in "),
    ):
        save_file(weights | {name: broken}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ConfigError, match=match):
            load_language_model(base, tokenizer, PLACEMENT)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    packed = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**ASKED[Quantization.nf4])
    )
    packed.save_pretrained(folder)
    match = r"^model\.quantization must be none for model\.path '.*', whose weights are quantized already, by bits"
    with pytest.raises(ConfigError, match=match):
        load_language_model(base, tokenizer, PLACEMENT)
    plain = replace(base, quantization=Quantization.none, lora=LoraConfig())  # which a plan refuses, too
    with pytest.raises(ConfigError, match=r"^model\.lora\.rank must be > 0 for model\.path .*, got 0$"):
        footprint_of(Role("model.path", plain, is_trained=True), Rows(8, 8), DistributedConfig(device=Device.cpu), 1)

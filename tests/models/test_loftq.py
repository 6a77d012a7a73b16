"""LoftQ: on a packed base an adapter begins as what packing took, and is saved as one of that base."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerBase

from alignment.config.data import DataConfig, TrainSource
from alignment.config.distributed import DistributedConfig
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, LoraInit, ModelConfig, Quantization
from alignment.config.online import PPOConfig
from alignment.config.ppo import RolesConfig, Share
from alignment.config.reward import RewardShapingConfig
from alignment.config.train import TrainConfig
from alignment.distributed.placement import WHOLE
from alignment.distributed.sharded import placement_of
from alignment.models.adapters import lora_layers
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.models.quantized import ASKED, keep_packing, whole_weight
from alignment.rl.reference import FrozenAdapter, build_reference

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])
PLACEMENT = placement_of(DistributedConfig())  # as a run has it


@pytest.fixture
def base(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    wide = {**tiny_init, "hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.2}
    save_model(load_language_model(ModelConfig(init=wide), tokenizer, WHOLE), tokenizer, tmp_path / "base")
    return tmp_path / "base"


def config(base: Path, rank: int = 4, init: LoraInit = LoraInit.loftq, **lora: Any) -> ModelConfig:
    lora_config = LoraConfig(rank=rank, alpha=6, init=init, **lora)
    return ModelConfig(path=str(base), quantization=Quantization.nf4, lora=lora_config)


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf.eval()(IDS).logits


@pytest.mark.parametrize("load", [load_language_model, load_scalar_model])
@pytest.mark.parametrize("rslora", [False, True])
@torch.no_grad()
def test_what_is_left_of_the_error_is_the_singular_values_beyond_the_rank(
    load: Any, rslora: bool, base: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Eckart and Young: with B = 0 all of them are left."""
    whole = AutoModelForCausalLM.from_pretrained(base).state_dict()
    model = load(config(base, rslora=rslora), tokenizer, PLACEMENT)
    layers: list[Any] = lora_layers(model.hf)
    names = {id(module): name for name, module in model.hf.named_modules()}
    assert layers
    for layer in layers:
        lost = whole[f"{names[id(layer)]}.weight"] - whole_weight(layer.get_base_layer())
        values = torch.linalg.svdvals(lost)
        left = (lost - layer.get_delta_weight("default")).norm()
        torch.testing.assert_close(left, values[4:].norm(), rtol=1e-4, atol=1e-6)
        assert left < lost.norm()


@torch.no_grad()
def test_a_weight_that_its_file_has_the_other_way_round_is_told_though_it_is_square(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """GPT-2's: attention's output layer has as many rows as columns."""
    torch.manual_seed(0)
    init = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 4, "initializer_range": 0.2}
    save_model(load_language_model(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, tmp_path / "base")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    model = load_language_model(config(tmp_path / "base"), tokenizer, PLACEMENT)
    squares = 0
    for name, layer in [(name, each) for name, each in model.hf.named_modules() if each in set(lora_layers(model.hf))]:
        lost = whole[f"{name}.weight"].T - whole_weight(layer.get_base_layer())
        left = (lost - layer.get_delta_weight("default")).norm()
        torch.testing.assert_close(left, torch.linalg.svdvals(lost)[4:].norm(), rtol=1e-4, atol=1e-6)
        squares += lost.shape[0] == lost.shape[1]
    assert squares == 1


def test_its_weights_are_those_that_peft_finds(
    base: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft sends each weight to a GPU, and takes no account of the scale: of 1 here."""
    asked = BitsAndBytesConfig(**ASKED[Quantization.nf4])
    theirs: Any = AutoModelForCausalLM.from_pretrained(base, quantization_config=asked)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=4, target_modules="all-linear"))
    to = Tensor.to
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "to", lambda self, *a, **k: to(self, *a, **({**k, "device": "cpu"} if k else k)))
        peft.replace_lora_weights_loftq(theirs, str(base))
    lora = LoraConfig(rank=4, alpha=4, rslora=False, init=LoraInit.loftq)
    own = load_language_model(
        ModelConfig(path=str(base), quantization=Quantization.nf4, lora=lora), tokenizer, PLACEMENT
    )
    for one, other in zip(lora_layers(own.hf), lora_layers(theirs), strict=True):
        ours, found = (layer.get_delta_weight("default") for layer in (one, other))
        torch.testing.assert_close(ours, found, rtol=0, atol=1e-6)


def test_it_is_saved_as_an_adapter_of_the_packed_base_and_merged(
    base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = load_language_model(config(base), tokenizer, PLACEMENT)
    before = logits(model.hf)
    reference = build_reference(model)
    assert isinstance(reference, FrozenAdapter)
    with torch.no_grad():
        for weight in model.trained().values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    now = logits(model.hf)
    with torch.no_grad(), model.as_it_was("reference"):
        assert torch.equal(logits(model.hf), before) and not torch.equal(now, before)
    save_model(model, tokenizer, tmp_path / "saved")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(merged), now, rtol=0, atol=1e-4)
    packed = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(**ASKED[Quantization.nf4])
    )
    keep_packing(packed)
    beside = peft.PeftModel.from_pretrained(packed, tmp_path / "saved" / "adapter")
    torch.testing.assert_close(logits(beside), now, rtol=0, atol=1e-4)


def test_what_cannot_begin_so_is_refused(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"^model\.quantization must be nf4 with model\.lora\.init=loftq.*got 'none'"):
        ModelConfig(path=str(base), lora=LoraConfig(rank=4, init=LoraInit.loftq))
    with pytest.raises(ConfigError, match=r"^model\.lora\.dora must be false with model\.lora\.init=loftq"):
        LoraConfig(rank=4, init=LoraInit.loftq, dora=True)
    with pytest.raises(ConfigError, match=r"^model\.lora\.rank must be <= \d+ for model\.lora\.init=loftq"):
        load_language_model(config(base, rank=100), tokenizer, PLACEMENT)


def test_weights_by_another_name_than_the_model_s_are_not_found_and_that_is_told(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A folder of the body alone, as transformers' AutoModel saves one, lacks the prefix that the whole model has."""
    hf: Any = load_language_model(ModelConfig(init={**tiny_init, "tie_word_embeddings": True}), tokenizer, PLACEMENT).hf
    hf.base_model.save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    default = ModelConfig(path=str(tmp_path / "body"), lora=LoraConfig(rank=4), quantization=Quantization.nf4)
    load_language_model(default, tokenizer, PLACEMENT)
    rule = r"^model\.lora\.init=loftq must find model\.layers\.0\..*\.weight under that name .*init=default"
    with pytest.raises(ConfigError, match=rule):
        load_language_model(config(tmp_path / "body", rank=4), tokenizer, PLACEMENT)


def test_roles_on_one_base_begin_otherwise(base: Path) -> None:
    """Which holds one adapter's W - Q and not another's."""
    rule = r"^model\.lora\.init must be default or gaussian with roles\.share=lora.*got 'loftq'"
    with pytest.raises(ConfigError, match=rule):
        PPOConfig(
            output_dir="run",
            model=config(base, rank=4),
            roles=RolesConfig(share=Share.lora),
            reward=RewardShapingConfig(path="judge"),
            data=DataConfig(train=TrainSource("prompts.jsonl")),
            train=TrainConfig(max_steps=1, learning_rate=1e-3),
        )

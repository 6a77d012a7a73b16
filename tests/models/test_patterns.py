"""Ranks and scales of their own for layers whose names fit a pattern: as peft has them, counted by the plan, merged and
saved as they act."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.config.adapter import settled
from alignment.config.batch import Layout
from alignment.config.data import DataConfig, TrainSource
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, LoraInit, ModelConfig
from alignment.config.supervised import DPOConfig
from alignment.config.train import TrainConfig
from alignment.distributed.placement import WHOLE
from alignment.models.adapters import DEFAULT, is_adapted
from alignment.models.counted import Role, Rows
from alignment.models.footprint import counted_of
from alignment.models.load import load_language_model, save_model
from alignment.models.lora import add_another, read_adapter, shape_of_adapter
from tests.conftest import TINY

RANKS, ALPHAS = {"layers.0.self_attn.q_proj": 5, "mlp.*": 2}, {"v_proj": 6, "layers.1.*": 3}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])
LAYERS = 2
OF_A_LAYER = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


@pytest.fixture(scope="module")
def base(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "model"
    init = {**TINY, "num_hidden_layers": LAYERS, "vocab_size": len(tokenizer)}
    save_model(load_language_model(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, folder)
    return folder


def lora(**more: Any) -> LoraConfig:
    return LoraConfig(rank=4, alpha=8, rank_pattern=dict(RANKS), alpha_pattern=dict(ALPHAS), **more)


def layers_of(hf: Any) -> dict[str, Any]:
    return {name.removeprefix("model.layers."): each for name, each in hf.named_modules() if is_adapted(each)}


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf.eval()(IDS).logits


def test_each_layer_has_the_first_number_that_fits(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_language_model(ModelConfig(path=str(base), lora=lora()), tokenizer, WHOLE)
    found = {name: (each.r[DEFAULT], each.lora_alpha[DEFAULT]) for name, each in layers_of(model.hf).items()}
    assert found["0.self_attn.q_proj"] == (5, 8)
    assert found["1.self_attn.q_proj"] == (4, 3)
    assert found["0.mlp.up_proj"] == (2, 8)
    assert found["1.self_attn.v_proj"] == (4, 6)
    add_another(model.hf, "critic", shape_of_adapter(model.hf))
    both = layers_of(model.hf).values()
    assert all(each.r[DEFAULT] == each.r["critic"] for each in both)
    assert all(each.scaling[DEFAULT] == each.scaling["critic"] for each in both)


@pytest.mark.parametrize("init", [LoraInit.default, LoraInit.pissa])
def test_peft_reads_what_is_saved(
    base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, init: LoraInit
) -> None:
    """Where the adapter began as a part of its base, as one of twice the ranks, with nothing left to scale by."""
    torch.manual_seed(1)
    model = load_language_model(ModelConfig(path=str(base), lora=lora(init=init)), tokenizer, WHOLE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if f".{DEFAULT}." in name:
                weight.add_(0.1 * torch.randn_like(weight))
    on = logits(model.hf)
    save_model(model, tokenizer, tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), on, rtol=1e-4, atol=1e-5)
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    torch.testing.assert_close(logits(beside), on, rtol=1e-4, atol=1e-5)
    times, shape = 1 + (init is LoraInit.pissa), read_adapter(tmp_path / "adapter").shape
    assert shape.rank_pattern == {key: times * r for key, r in RANKS.items()}
    layers = {f"model.layers.1.{name}": 3 for name in OF_A_LAYER if not name.endswith("v_proj")}
    heads = {f"model.layers.{layer}.self_attn.v_proj": 6 for layer in range(LAYERS)}
    by_layers = layers | heads  # for peft sorts patterns, and their order counts here
    alphas = (8, by_layers) if init is LoraInit.default else (shape.rank, shape.rank_pattern)
    assert (shape.alpha, shape.alpha_pattern, shape.rslora) == (*alphas, init is LoraInit.default)
    data, train = DataConfig(train=TrainSource(path="rows.jsonl")), TrainConfig(max_steps=1, learning_rate=1e-3)
    model_config = ModelConfig(adapter=str(tmp_path / "adapter"))
    if init is LoraInit.default:
        assert settled(DPOConfig(model=model_config, data=data, train=train)).model.lora.rank_pattern == RANKS
        model_config.lora.rank_pattern = {"q_proj": 2}
        with pytest.raises(ConfigError, match=r"^model\.lora\.rank_pattern must be left out beside model\.adapter"):
            settled(DPOConfig(model=model_config, data=data, train=train))


@pytest.mark.parametrize(
    ("depth", "numbers"),
    [
        (2, RANKS),
        pytest.param(6, {"q_proj": 7}, marks=pytest.mark.slow),
        pytest.param(6, {"layers.5.self_attn.q_proj": 9}, marks=pytest.mark.slow),
    ],
)
def test_a_plan_counts_by_them(depth: int, numbers: dict[str, int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Of more layers than are tried as well: a pattern of some layers is of no others."""
    init = {**TINY, "num_hidden_layers": depth, "vocab_size": len(tokenizer)}
    adapter = LoraConfig(rank=4, rank_pattern=dict(numbers))
    model = load_language_model(ModelConfig(init=init, lora=adapter), tokenizer, WHOLE)
    own = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    role = Role("model", ModelConfig(init=init, lora=adapter), is_trained=True)
    assert counted_of(role, Rows(1, 255, 2), torch.float32, Layout.shared).trained == own


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"rank_pattern": {"layers.7.*": 2}}, r"rank_pattern must fit layers with an adapter, .*, got 'layers\.7\.\*'"),
        ({"alpha_pattern": {".*": 2, "q_proj": 4}}, "alpha_pattern must fit .* that no earlier one fits, got 'q_proj'"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\.q_proj must be >= 1, got 0"),
        ({"alpha_pattern": {"(q_proj": 2}}, r"alpha_pattern must have names or patterns of layers, got '\(q_proj'"),
    ],
)
def test_what_fits_no_layer_is_refused(
    keys: dict[str, Any], match: str, base: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.lora\.{match}"):
        load_language_model(ModelConfig(path=str(base), lora=LoraConfig(rank=4, **keys)), tokenizer, WHOLE)

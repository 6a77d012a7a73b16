"""The memory of the host while a model is read: what it is held in and one more weight, beside a GPU one weight."""

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.model import LoraConfig, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.distributed.sharded import placement_of
from alignment.models.load import (
    load_frozen_language_model,
    load_frozen_reward_model,
    load_language_model,
    load_reward_model,
    load_scalar_model,
    save_model,
)

DEEP = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 12}
NARROW = placement_of(DistributedConfig(device=Device.cpu, precision=Precision.bfloat16))
LOADS = {
    "policy": load_language_model,
    "lora": load_language_model,
    "reference": load_frozen_language_model,
    "new critic": load_scalar_model,
    "critic": partial(load_reward_model, key="reward.path"),
    "reward": partial(load_frozen_reward_model, key="reward.path"),
}


@pytest.fixture(scope="module")
def ranks() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        return importlib.import_module("loading_ranks")


def own_bytes(model: nn.Module, ranks: ModuleType) -> int:
    """Of its weights, but of those that are in a mapped file."""
    weights = (weight for weight in model.parameters() if not ranks.is_mapped(weight.data_ptr()))
    return sum(weight.numel() * weight.element_size() for weight in weights)


@pytest.mark.parametrize("role", LOADS)
@pytest.mark.parametrize("kind", ["bfloat16", "float32", "pickled", "mixture"])
def test_a_model_takes_what_it_is_held_in_and_one_weight_more(
    kind: str,
    role: str,
    ranks: ModuleType,
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    """What a file has in the dtype that it is held in stays in the file, and all processes share its pages."""
    experts = {"model_type": "mixtral", "num_local_experts": 8} if kind == "mixture" else {}
    load = load_scalar_model if role in ("critic", "reward") else load_language_model
    model = load(ModelConfig(init=tiny_init | DEEP | experts), tokenizer, WHOLE)
    model.saved_in = torch.bfloat16 if kind == "bfloat16" else torch.float32
    save_model(model, tokenizer, tmp_path)
    if kind == "pickled":
        file = tmp_path / "model.safetensors"
        torch.save({name: weight.clone() for name, weight in load_file(file).items()}, tmp_path / "pytorch_model.bin")
        file.unlink()
    config = ModelConfig(path=str(tmp_path), lora=LoraConfig(rank=4 if role == "lora" else 0))
    with ranks.Alive() as alive:
        model = LOADS[role](config, tokenizer, NARROW)
    own, largest = own_bytes(model, ranks), ranks.largest(model)
    assert own <= alive.now and alive.highest < own + 2 * largest
    total = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    assert total > 3 * largest
    if kind in ("float32", "pickled") and role in ("policy", "new critic", "critic"):
        assert own < total / 10


def test_the_host_has_one_weight_at_a_time_of_a_model_on_a_device(
    ranks: ModuleType, run_ranks: Callable[..., None], tmp_path: Path
) -> None:
    """And new rows of embeddings, which are drawn on the host. It trains as one that was read there."""
    sharded_ranks = importlib.import_module("sharded_ranks")
    sharded_ranks.write_folders(tmp_path)
    run_ranks(Path(__file__).with_name("loading_ranks.py"), [str(tmp_path)], processes=1, two_devices=True)
    found = json.loads((tmp_path / "loaded.json").read_text())
    for name in ranks.NAMES:
        assert found[name]["there"]
        assert found[name]["host"] <= (5 if name == "grown" else 1) * found[name]["largest"], name
        if "steps" not in found[name]:
            continue
        _, _, steps = sharded_ranks.trained(name, tmp_path, sharded_ranks.PLAIN)
        for own, plain in zip(found[name]["steps"], steps, strict=True):
            assert own == pytest.approx(plain, rel=0.02 if name.startswith("bfloat16") else 1e-5, abs=1e-5)

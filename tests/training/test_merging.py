"""ReLoRA: at each merge the model is what it was, the optimizer has forgotten the adapter, and the rate rises anew."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig, Layout
from alignment.config.distributed import DistributedConfig
from alignment.config.model import LoraConfig, LoraInit, ModelConfig
from alignment.config.train import Schedule, TrainConfig
from alignment.data.batches import Batches, Packer
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.losses import CrossEntropyLoss
from alignment.models.adapters import lora_layers
from alignment.models.load import load_language_model
from alignment.training.merging import Merging
from alignment.training.objectives import SFT
from alignment.training.optim import Restarts, build_optimizer, lr_factor, restarts_of
from alignment.training.step import train_step

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])
TRAIN = TrainConfig(max_steps=6, learning_rate=1e-2, schedule=Schedule.constant)
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf.eval()(IDS).logits


@pytest.mark.parametrize("init", [LoraInit.default, LoraInit.gaussian])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_equals_unmerged_at_each_merge(
    family: str,
    init: LoraInit,
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: list[Example],
) -> None:
    """PLoRA's claim, and what an adapter has taught the model stays."""
    torch.manual_seed(0)
    lora = LoraConfig(rank=4, merge_every=2, init=init, rslora=True)
    model = load_language_model(
        ModelConfig(init={"llama": tiny_init, "gpt2": GPT2}[family], lora=lora), tokenizer, WHOLE
    )
    model.double()  # in float32 the logits of two orders of the same sums differ in their last digits
    first = logits(model.hf)
    optimizer, scheduler = build_optimizer(model, TRAIN, num_steps=6, learning_rate=1e-2)
    engine = TorchEngine(model, optimizer, scheduler, config=DistributedConfig(), max_grad_norm=1.0)
    merging, never = (Merging(engine, model, each, seed=0) for each in (lora, LoraConfig(rank=4, merge_every=99)))
    batches = Batches(demonstrations, Packer(BatchConfig(size=2, max_tokens=4096, layout=Layout.shared), 0), 0)
    for step in range(6):
        learned = train_step(engine, SFT(CrossEntropyLoss()), batches.step(step))
        assert "loss" in learned
        never.after()
        unmerged, known, layers = logits(model.hf), len(optimizer.state), lora_layers(model.hf)
        adapter: list[Any] = [layer.lora_B["default"].weight for layer in layers]
        assert known == 2 * len(layers) and any(bool(weight.any()) for weight in adapter)
        merging.after()
        torch.testing.assert_close(logits(model.hf), unmerged, rtol=0, atol=1e-6)
        is_merge = step % 2 == 1
        assert len(optimizer.state) == (0 if is_merge else known)
        assert any(bool(weight.any()) for weight in adapter) is not is_merge
    assert not torch.allclose(logits(model.hf), first, atol=1e-3)
    assert merging.state()["base"].keys() == {f"hf.{name}.base_layer.weight" for name in names_of(model.hf)}
    assert never.state() == {"steps": 6, "base": {}}


def names_of(hf: Any) -> list[str]:
    layers = set(lora_layers(hf))
    return [name for name, module in hf.named_modules() if module in layers]


def test_the_rate_falls_to_nothing_at_a_merge_and_rises_to_the_schedule() -> None:
    config = TrainConfig(max_steps=20, learning_rate=1.0, schedule=Schedule.linear, warmup_steps=5)
    jagged, smooth = lr_factor(config, 20, Restarts(8, 4)), lr_factor(config, 20)
    shares = [jagged(step) / smooth(step) if smooth(step) else 1.0 for step in range(20)]
    assert shares == pytest.approx([1.0] * 8 + [0, 0.25, 0.5, 0.75] + [1.0] * 4 + [0, 0.25, 0.5, 0.75])
    assert restarts_of(LoraConfig(rank=4), config, 20) is None
    assert restarts_of(LoraConfig(rank=4, merge_every=8), config, 20) == Restarts(8, 4)  # half
    assert restarts_of(LoraConfig(rank=4, merge_every=12), config, 20) == Restarts(12, 5)  # the run's
    own = LoraConfig(rank=4, merge_every=8, restart_warmup_steps=7)
    assert restarts_of(own, config, 20) == Restarts(8, 7)

"""A step of LoRA beside the step of all weights: of full rank it is in its direction, below that its projection."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig, Layout
from alignment.config.distributed import DistributedConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.optimizer import OptimizerName
from alignment.config.train import Schedule, TrainConfig
from alignment.data.batches import Batches, Packer
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.losses import CrossEntropyLoss, MarginRankingLoss
from alignment.models.adapters import DEFAULT, is_adapted
from alignment.models.load import load_language_model, load_scalar_model
from alignment.training.objectives import SFT, RewardRanking
from alignment.training.optim import build_optimizer
from alignment.training.step import train_step

RATE = 0.01
TRAIN = TrainConfig(
    max_steps=1, learning_rate=RATE, schedule=Schedule.constant, optimizer=OptimizerName.sgd, max_grad_norm=float("inf")
)
FULL = 48  # the most inputs and outputs of a layer of the tiny model
METHODS: dict[str, tuple[Any, Any]] = {
    "sft": (load_language_model, SFT(CrossEntropyLoss())),
    "reward": (load_scalar_model, RewardRanking(MarginRankingLoss())),
}


def layers_of(hf: nn.Module, names: set[str]) -> dict[str, Any]:
    return {name: module for name, module in hf.named_modules() if name in names}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rank", "rslora", "plus"), [(FULL, False, 1.0), (FULL, True, 3.0), (4, False, 1.0)])
def test_a_step_is_the_full_update_s(
    rank: int,
    rslora: bool,
    plus: float,
    method: str,
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[Example],
    demonstrations: list[Example],
) -> None:
    """B = 0 at first, so that a step of gradient descent makes s B A = s^2 plus (dW A^T A), dW the step of the weight
    itself; A^T A is the identity where the columns of A are orthonormal, for which it takes the full rank."""
    load, objective = METHODS[method]
    rows = demonstrations if method == "sft" else pairs

    def stepped(lora: LoraConfig, prepare: Any) -> nn.Module:
        torch.manual_seed(0)
        model = load(ModelConfig(init=tiny_init, lora=lora), tokenizer, WHOLE).double()
        prepare(model.hf)
        optimizer, schedule = build_optimizer(model, TRAIN, num_steps=1, learning_rate=RATE, lora_plus=lora.plus)
        engine = TorchEngine(model, optimizer, schedule, config=DistributedConfig(), max_grad_norm=TRAIN.max_grad_norm)
        batches = Batches(rows, Packer(BatchConfig(size=4, max_tokens=4096, layout=Layout.shared), 0), 0)
        assert train_step(engine, objective, batches.step(0)).means()["grad_norm"] > 0.1
        return model.hf

    down: dict[str, Tensor] = {}
    before: dict[str, Tensor] = {}

    def drawn(hf: nn.Module) -> None:
        for name, layer in hf.named_modules():
            if is_adapted(layer):
                weight = layer.lora_A[DEFAULT].weight
                nn.init.orthogonal_(weight)  # its columns where it has as many rows, else its rows
                down[name] = weight.detach().clone()

    def noted(hf: nn.Module) -> None:
        before.update({name: layer.weight.detach().clone() for name, layer in layers_of(hf, set(down)).items()})

    adapted = stepped(LoraConfig(rank=rank, alpha=20, rslora=rslora, plus=plus), drawn)
    full = stepped(LoraConfig(), noted)
    scale = 20 / rank**0.5 if rslora else 20 / rank
    added, own = layers_of(adapted, set(down)), layers_of(full, set(down))
    assert len(own) == 14  # seven of each layer
    for name, layer in added.items():
        update = own[name].weight.detach() - before[name]
        delta = layer.get_delta_weight(DEFAULT).detach()
        assert update.norm() > 1e-4
        torch.testing.assert_close(delta, scale**2 * plus * update @ down[name].T @ down[name], rtol=1e-6, atol=1e-12)
        cosine = torch.cosine_similarity(delta.flatten(), update.flatten(), dim=0)
        if rank == FULL:
            torch.testing.assert_close(delta, scale**2 * plus * update, rtol=1e-6, atol=1e-12)
            assert cosine > 1 - 1e-9
        else:
            assert 0 < cosine < 0.9

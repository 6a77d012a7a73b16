import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, get_scheduler

from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.train import Schedule, TrainConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model
from alignment.training.optim import build_optimizer, lr_lambda


class Net(nn.Sequential):
    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


def model() -> Any:
    return Net(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))


def rates(config: TrainConfig, num_steps: int) -> list[float]:
    """The learning rate of each step."""
    optimizer, scheduler = build_optimizer(model(), config, num_steps=num_steps, learning_rate=config.learning_rate)
    found = []
    for _ in range(num_steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "name"),
    [(Schedule.cosine, "cosine"), (Schedule.linear, "linear"), (Schedule.constant, "constant_with_warmup")],
)
@pytest.mark.parametrize(("warmup", "num_steps"), [(0, 1), (1, 1), (0, 7), (3, 7), (7, 7), (9, 7), (30, 1000)])
def test_the_schedules_are_those_of_transformers(schedule: Schedule, name: str, warmup: int, num_steps: int) -> None:
    """To the bit, steps beyond the last included."""
    optimizer = torch.optim.SGD(model().parameters(), lr=1.0)
    theirs: Any = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=num_steps)
    (of_theirs,) = theirs.lr_lambdas
    for step in range(num_steps + 3):
        assert lr_lambda(schedule, warmup, num_steps, step) == of_theirs(step)


def test_decay_is_on_matrices_only() -> None:
    module = model()
    config = TrainConfig(max_steps=1, weight_decay=0.1)
    optimizer, _ = build_optimizer(module, config, num_steps=1, learning_rate=1.0)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in module.named_parameters()} == {
        "0.weight": 0.1,
        "1.weight": 0.1,
        "1.bias": 0.0,
        "2.weight": 0.0,
        "2.bias": 0.0,
    }


def test_constants_reach_adamw() -> None:
    config = TrainConfig(max_steps=1, betas=[0.8, 0.95], eps=1e-6)
    optimizer, _ = build_optimizer(model(), config, num_steps=1, learning_rate=3e-4)
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.95), 1e-6, 3e-4)


def test_decay_is_decoupled_from_the_gradient() -> None:
    """AdamW with no gradient but 0: matrices shrink by lr * decay, the rest stays."""
    module = model()
    config = TrainConfig(max_steps=1, weight_decay=0.1, schedule=Schedule.constant)
    optimizer, _ = build_optimizer(module, config, num_steps=1, learning_rate=0.5)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in module.named_parameters():
        factor = 0.95 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])


def test_frozen_weights_are_not_the_optimizer_s(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    module = load_language_model(ModelConfig(init=tiny_init, lora=LoraConfig(rank=2)), tokenizer, WHOLE)
    optimizer, _ = build_optimizer(module, TrainConfig(max_steps=1), num_steps=1, learning_rate=1.0)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters() if p.requires_grad}


SHAPES: dict[Schedule, Callable[[float], float]] = {  # of the share of the way from warm-up to the end
    Schedule.cosine: lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    Schedule.linear: lambda share: 1 - share,
    Schedule.constant: lambda share: 1.0,
}


@pytest.mark.parametrize("schedule", list(Schedule))
def test_schedules_by_hand(schedule: Schedule) -> None:
    warm = [0.0, 0.25, 0.5, 0.75]
    want = [2.0 * part for part in warm] + [2.0 * SHAPES[schedule](step / 6) for step in range(6)]
    config = TrainConfig(max_steps=10, learning_rate=2.0, schedule=schedule, warmup_steps=4)
    assert rates(config, 10) == pytest.approx(want)


@pytest.mark.parametrize("schedule", list(Schedule))
def test_without_warm_up_the_first_step_has_the_whole_rate(schedule: Schedule) -> None:
    assert rates(TrainConfig(max_steps=5, learning_rate=2.0, schedule=schedule), 5)[0] == 2.0

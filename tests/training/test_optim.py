import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_scheduler,
    get_wsd_schedule,
)

from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.train import Schedule, TrainConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model
from alignment.training.optim import build_optimizer, lr_factor, lr_lambda


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


@pytest.mark.parametrize("lowest", [0.0, 0.1])
@pytest.mark.parametrize(("rises", "falls", "num_steps"), [(0, 2, 7), (3, 2, 7), (3, 4, 7), (0, 7, 7), (30, 100, 1000)])
def test_wsd_is_that_of_transformers(rises: int, falls: int, num_steps: int, lowest: float) -> None:
    """Whose warm-up begins at the lowest rate, where ours begins at 0 under every schedule."""
    optimizer = torch.optim.SGD(model().parameters(), lr=1.0)
    theirs: Any = get_wsd_schedule(optimizer, rises, falls, num_steps, min_lr_ratio=lowest)
    (of_theirs,) = theirs.lr_lambdas
    for step in range(0 if lowest == 0 else rises, num_steps + 3):
        ours = lr_lambda(Schedule.wsd, rises, num_steps, step, decay_steps=falls, lowest=lowest)
        assert ours == of_theirs(step), step


@pytest.mark.parametrize(("rises", "num_steps"), [(0, 7), (3, 7), (30, 1000)])
def test_cosine_down_to_a_lowest_rate_is_that_of_transformers(rises: int, num_steps: int) -> None:
    optimizer = torch.optim.SGD(model().parameters(), lr=1.0)
    theirs: Any = get_cosine_with_min_lr_schedule_with_warmup(optimizer, rises, num_steps, min_lr_rate=0.1)
    (of_theirs,) = theirs.lr_lambdas
    for step in range(num_steps + 1):
        assert lr_lambda(Schedule.cosine, rises, num_steps, step, lowest=0.1) == pytest.approx(of_theirs(step))


def test_the_lowest_rate_and_the_decay_of_a_config() -> None:
    """A fifth of 10 steps falls, a share that is no whole number of steps is rounded up; a critic's rate keeps the
    same share."""
    falling = TrainConfig(max_steps=10, learning_rate=2.0, min_learning_rate=0.5, schedule=Schedule.linear)
    assert rates(falling, 10) == pytest.approx([2.0 - 0.15 * step for step in range(10)])
    assert build_optimizer(model(), falling, num_steps=10, learning_rate=4.0)[1].get_last_lr()[0] == 4.0
    assert lr_factor(falling, 10)(10) == 0.25
    stable = TrainConfig(max_steps=10, learning_rate=2.0, schedule=Schedule.wsd, decay_ratio=0.11, warmup_steps=2)
    assert rates(stable, 10) == pytest.approx([0.0, 1.0, *[2.0] * 7, 1.0])
    longer = lr_factor(stable, 20)
    assert [longer(step) for step in range(2, 17)] == [1.0] * 15 and 0 < longer(18) < 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"min_learning_rate": 1e-5},
            r"^train.min_learning_rate must be in \[0, train.learning_rate\), which is 1e-05",
        ),
        ({"min_learning_rate": -1.0}, r"^train.min_learning_rate must be in .*, got -1.0$"),
        ({"min_learning_rate": 1e-6, "schedule": Schedule.constant}, "goes with a train.schedule that falls"),
        ({"decay_ratio": 0.2}, "^train.decay_ratio goes with train.schedule=wsd, got 0.2$"),
        ({"decay_ratio": 0.0, "schedule": Schedule.wsd}, r"^train.decay_ratio must be in \(0, 1\], got 0.0$"),
    ],
)
def test_keys_of_schedules_that_cannot_act_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(max_steps=5, **keys)


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
    Schedule.wsd: lambda share: 0.5 if share == 5 / 6 else 1.0,  # two of ten steps fall, by half a cosine
}


@pytest.mark.parametrize("schedule", list(Schedule))
def test_schedules_by_hand(schedule: Schedule) -> None:
    warm = [0.0, 0.25, 0.5, 0.75]
    want = [2.0 * part for part in warm] + [2.0 * SHAPES[schedule](step / 6) for step in range(6)]
    decay = {"decay_ratio": 0.2} if schedule is Schedule.wsd else {}
    config = TrainConfig(max_steps=10, learning_rate=2.0, schedule=schedule, warmup_steps=4, **decay)
    assert rates(config, 10) == pytest.approx(want)


@pytest.mark.parametrize("schedule", list(Schedule))
def test_without_warm_up_the_first_step_has_the_whole_rate(schedule: Schedule) -> None:
    assert rates(TrainConfig(max_steps=5, learning_rate=2.0, schedule=schedule), 5)[0] == 2.0

"""What is changed as a run goes on acts from the next step on, whatever its checkpoint holds."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from alignment.config.best import BestConfig, Mode
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import UserError
from alignment.config.train import Schedule, TrainConfig
from alignment.distributed.engine import TorchEngine
from alignment.losses import Mean
from alignment.training.best import BestByMetric, BestWithinLimit, LastModel
from alignment.training.metrics import Metrics
from alignment.training.optim import build_optimizer, lr_lambda

STEPS, CHANGED = 12, 5
BEFORE = {"learning_rate": 0.1, "schedule": Schedule.cosine, "warmup_steps": 2, "weight_decay": 0.1}
AFTER: dict[str, dict[str, Any]] = {
    "nothing": {},
    "learning_rate": {"learning_rate": 0.3},
    "schedule": {"schedule": Schedule.linear},
    "min_learning_rate": {"min_learning_rate": 0.05},
    "warmup_steps": {"warmup_steps": 8},
    "weight_decay": {"weight_decay": 0.7},
    "betas": {"betas": [0.5, 0.6]},
    "eps": {"eps": 1e-2},
    "all": {"learning_rate": 0.3, "schedule": Schedule.linear, "weight_decay": 0.0, "betas": [0.1, 0.2], "eps": 0.1},
}


class Net(nn.Sequential):
    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


def fresh() -> Any:
    torch.manual_seed(0)
    return Net(nn.Linear(3, 4), nn.LayerNorm(4))


def engine_of(config: TrainConfig) -> TorchEngine:
    model = fresh()
    optimizer, scheduler = build_optimizer(model, config, num_steps=STEPS, learning_rate=config.learning_rate)
    return TorchEngine(
        model, optimizer, scheduler, config=DistributedConfig(device=Device.cpu), max_grad_norm=config.max_grad_norm
    )


def gradients(step: int, model: nn.Module) -> list[torch.Tensor]:
    """Of a step, small enough to be clipped by nobody."""
    drawn = torch.Generator().manual_seed(step)
    return [0.01 * torch.randn(p.shape, generator=drawn) for p in model.parameters()]


def take(engine: TorchEngine, steps: range) -> None:
    for step in steps:
        for p, gradient in zip(engine.model.parameters(), gradients(step, engine.model), strict=True):
            p.grad = gradient
        engine.step()


def by_hand(before: TrainConfig, after: TrainConfig) -> nn.Module:
    """torch's AdamW alone, whose groups are given the settings of each step."""
    model = fresh()
    matrices, others = [[p for p in model.parameters() if (p.dim() == 2) is wanted] for wanted in (True, False)]
    optimizer = AdamW([{"params": matrices}, {"params": others}], fused=True)
    for step in range(STEPS):
        now = before if step < CHANGED else after
        lowest = now.min_learning_rate / now.learning_rate
        rate = now.learning_rate * lr_lambda(now.schedule, now.warmup_steps, STEPS, step, lowest=lowest)
        for group, decay in zip(optimizer.param_groups, (now.weight_decay, 0.0), strict=True):
            group.update(lr=rate, betas=now.constants.betas, eps=now.constants.eps, weight_decay=decay)
        for p, gradient in zip(model.parameters(), gradients(step, model), strict=True):
            p.grad = gradient
        optimizer.step()
    return model


@pytest.mark.parametrize("change", AFTER)
def test_a_run_that_goes_on_with_a_change_is_the_one_made_by_hand(change: str) -> None:
    """To the last bit."""
    before = TrainConfig(max_steps=STEPS, **BEFORE)
    after = TrainConfig(max_steps=STEPS, **{**BEFORE, **AFTER[change]})
    first, second = engine_of(before), engine_of(after)
    take(first, range(CHANGED))
    second.load_state(copy.deepcopy(first.state()))
    take(second, range(CHANGED, STEPS))
    wanted = by_hand(before, after)
    assert all(torch.equal(a, b) for a, b in zip(second.model.parameters(), wanted.parameters(), strict=True))
    unchanged = by_hand(before, before)
    is_same = all(torch.equal(a, b) for a, b in zip(wanted.parameters(), unchanged.parameters(), strict=True))
    assert is_same is (change == "nothing")
    third = engine_of(after)  # interrupted once more
    third.load_state(copy.deepcopy(second.state()))
    assert third.learning_rate() == second.learning_rate()


def leave_out(folder: Path) -> None:
    """A model that nobody reads."""


def test_a_best_by_another_metric_begins_anew_and_more_patience_goes_on(tmp_path: Path) -> None:
    keeper = BestByMetric(tmp_path / "best", BestConfig("eval/loss", patience=1))
    keeper.after_update(0, {"eval/loss": 1.0}, leave_out)
    keeper.after_update(1, {"eval/loss": 2.0}, leave_out)
    assert keeper.reason is not None
    state = keeper.state()
    older = {name: value for name, value in state.items() if name not in ("metric", "mode")}
    again = BestByMetric(tmp_path / "best", BestConfig("eval/loss"))
    again.load_state(older)
    assert again.score == 1.0
    for config, best, is_over in (
        (BestConfig("eval/loss", patience=1), 1.0, True),
        (BestConfig("eval/loss", patience=2), 1.0, False),
        (BestConfig("eval/loss"), 1.0, False),
        (BestConfig("eval/reward", Mode.max), float("-inf"), False),
        (BestConfig("eval/loss", Mode.max), float("-inf"), False),
    ):
        other = BestByMetric(tmp_path / "best", config)
        other.load_state(state)
        assert (other.score, other.reason is not None) == (best, is_over)
    begun = BestByMetric(tmp_path / "best", BestConfig("eval/loss"))
    begun.load_state(LastModel().state())
    assert begun.score == float("inf")


def test_a_lower_limit_of_the_kl_looks_for_its_best_anew(tmp_path: Path) -> None:
    def measured(kl: float) -> Metrics:
        return Metrics({"kl": Mean.of(torch.tensor([kl])), "reward": Mean.of(torch.tensor([1.0]))})

    keeper = BestWithinLimit(tmp_path / "best", 5.0)
    assert keeper.before_update(1, measured(4.0), leave_out) is None
    lower, higher = BestWithinLimit(tmp_path / "best", 3.0), BestWithinLimit(tmp_path / "best", 6.0)
    for each in (higher, lower):  # which forgets what is kept
        each.load_state(keeper.state())
    assert (lower.step, higher.step) == (0, 1)
    with pytest.raises(UserError, match=r"^kl.limit must be above the KL of the model that goes on \(4\), got 3$"):
        lower.before_update(2, measured(4.0), leave_out)
    assert lower.before_update(2, measured(2.0), leave_out) is None and lower.step == 2

"""The optimizer of a model and its schedule.

The schedules are transformers' own, three lines here: its module of them imports its Trainer's parts and with those
peft and bitsandbytes, a fifth of what every process takes to start.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from alignment.config.model import LoraConfig
from alignment.config.train import Schedule, TrainConfig
from alignment.models.heads import Trunk
from alignment.training.optimizers import make_optimizer
from alignment.training.parameter_groups import parameter_groups


@dataclass(frozen=True, slots=True)
class Restarts:
    """Every so many steps the learning rate falls to 0, from which it rises in so many."""

    every: int
    warmup_steps: int


def build_optimizer(
    model: Trunk,
    config: TrainConfig,
    *,
    num_steps: int,
    learning_rate: float,
    lora_plus: float = 1.0,
    restarts: Restarts | None = None,
) -> tuple[Optimizer, LRScheduler]:
    """The optimizer that `config` names, on its parameter groups; warm-up, then the schedule over `num_steps`, which
    all groups have in common.

    Args:
        lora_plus: the learning rate of adapters' B, as a multiple of `learning_rate`.
        restarts: where it rises anew; None: nowhere.
    """
    groups = parameter_groups(model, config, lora_plus=lora_plus, merges=restarts is not None)
    optimizer = make_optimizer(groups, config, learning_rate)
    return optimizer, LambdaLR(optimizer, lr_factor(config, num_steps, restarts))


def restarts_of(lora: LoraConfig, config: TrainConfig, num_steps: int) -> Restarts | None:
    """Where the learning rate rises anew as an adapter begins anew; None where none does."""
    if lora.merge_every == 0:
        return None
    own = min(warmup(config, num_steps), lora.merge_every // 2)
    return Restarts(lora.merge_every, own if lora.restart_warmup_steps is None else lora.restart_warmup_steps)


def lr_factor(config: TrainConfig, num_steps: int, restarts: Restarts | None = None) -> Callable[[int], float]:
    """What share of the learning rate each step of a run of `num_steps` has, the first being 0."""
    rises = warmup(config, num_steps)
    falls = min(math.ceil(config.decay_ratio * num_steps), max(0, num_steps - rises))
    lowest = config.min_learning_rate / config.learning_rate
    factor = partial(lr_lambda, config.schedule, rises, num_steps, decay_steps=falls, lowest=lowest)
    return factor if restarts is None else partial(_jagged, factor, restarts)


def _jagged(factor: Callable[[int], float], restarts: Restarts, step: int) -> float:
    """arXiv:2307.05695, 3.2: down to 0, and up again to the schedule, which has gone on."""
    since = step % restarts.every
    is_rising = step >= restarts.every and since < restarts.warmup_steps
    return factor(step) * (since / restarts.warmup_steps if is_rising else 1.0)


def lr_lambda(
    schedule: Schedule, warmup_steps: int, num_steps: int, step: int, *, decay_steps: int = 0, lowest: float = 0.0
) -> float:
    """What share of the learning rate `step` has, the first being 0: rising from 0 to 1 over the warm-up, then as
    scheduled to `lowest` at `num_steps`, under wsd in the last `decay_steps` alone; or constant."""
    if step < warmup_steps:
        return step / warmup_steps
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    match schedule:
        case Schedule.cosine:
            return _above(lowest, 0.5 * (1 + math.cos(math.pi * done)))
        case Schedule.linear:
            return _above(lowest, (num_steps - step) / max(1, num_steps - warmup_steps))
        case Schedule.wsd:
            fallen = step - (num_steps - decay_steps)
            if fallen < 0:
                return 1.0
            return (
                _above(lowest, 0.5 * (1 + math.cos(math.pi * (fallen / decay_steps)))) if step < num_steps else lowest
            )
        case Schedule.constant:
            return 1.0


def _above(lowest: float, share: float) -> float:
    """`share`, 1 to 0, as 1 to `lowest`."""
    return max(0.0, share * (1 - lowest) + lowest)


def warmup(config: TrainConfig, num_steps: int) -> int:
    """Steps in which the learning rate rises, of `num_steps`; a share of them is rounded up, as in transformers."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * num_steps)

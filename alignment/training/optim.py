"""AdamW and its schedule."""

import math

from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from alignment.config.enums import Schedule
from alignment.config.sections import TrainConfig
from alignment.distributed.engine import shape_of
from alignment.models.heads import Trunk

SCHEDULES = {Schedule.cosine: "cosine", Schedule.linear: "linear", Schedule.constant: "constant_with_warmup"}


def build_optimizer(
    model: Trunk, config: TrainConfig, *, num_steps: int, learning_rate: float
) -> tuple[Optimizer, LRScheduler]:
    """AdamW (arXiv:1711.05101), decay on matrices only; warm-up, then the schedule over `num_steps`."""
    matrices, others = weight_groups(model)
    groups = [
        {"params": list(weights.values()), "weight_decay": decay}
        for weights, decay in ((matrices, config.weight_decay), (others, 0.0))
        if weights
    ]
    beta1, beta2 = config.betas
    optimizer = AdamW(groups, lr=learning_rate, betas=(beta1, beta2), eps=config.eps, fused=True)
    scheduler = get_scheduler(
        SCHEDULES[config.schedule], optimizer, num_warmup_steps=warmup(config, num_steps), num_training_steps=num_steps
    )
    return optimizer, scheduler


def warmup(config: TrainConfig, num_steps: int) -> int:
    """Steps in which the learning rate rises, of `num_steps`; a share of them is rounded up, as in transformers."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * num_steps)


def weight_groups(model: Trunk) -> tuple[dict[str, Parameter], dict[str, Parameter]]:
    """The trained weights by name, in the optimizer's order: matrices, which decay, and the others. One may be empty,
    and is no group of the optimizer then."""
    trained = model.trained()
    matrices = {name: p for name, p in trained.items() if len(shape_of(p)) >= 2}
    others = {name: p for name, p in trained.items() if len(shape_of(p)) < 2}
    return matrices, others

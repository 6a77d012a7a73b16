"""The optimizers by name, of libraries all of them; what is here gives them their groups."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import SGD, AdamW, Muon, Optimizer

from alignment.config.optimizer import OptimizerName
from alignment.config.train import TrainConfig
from alignment.training.adamw_bf16 import AdamWOfBF16
from alignment.training.parameter_groups import ParameterGroup


def make_optimizer(groups: Sequence[ParameterGroup], config: TrainConfig, learning_rate: float) -> Optimizer:
    """`config.optimizer` of these groups, the first of which has the learning rate itself."""
    settings = [_settings(group, config, learning_rate) for group in groups]
    match config.optimizer:
        case OptimizerName.adamw:
            return AdamW(settings, **_of_adam(config), fused=True)
        case OptimizerName.adamw_8bit | OptimizerName.paged_adamw_8bit:
            return _adamw_8bit(settings, groups, config)
        case OptimizerName.adamw_bf16:
            return AdamWOfBF16(settings, **_of_adam(config))
        case OptimizerName.adafactor:
            from transformers import Adafactor  # not above: it is with the Trainer's parts, which few runs need

            return Adafactor(settings, scale_parameter=False, relative_step=False)
        case OptimizerName.lion:
            from bitsandbytes.optim import Lion  # not above: an extra

            return Lion(settings, betas=config.constants.betas)
        case OptimizerName.muon:
            return MuonAndAdamW(settings, [group.treatment.is_special for group in groups], config)
        case OptimizerName.sgd | OptimizerName.lomo:  # whose engine makes the updates
            return SGD(settings, momentum=config.constants.momentum or 0.0)


def _settings(group: ParameterGroup, config: TrainConfig, learning_rate: float) -> dict[str, Any]:
    treatment = group.treatment
    return {
        "params": list(group.weights.values()),
        "lr": learning_rate * treatment.lr_ratio,
        "weight_decay": config.weight_decay if treatment.decays else 0.0,
    }


def _of_adam(config: TrainConfig) -> dict[str, Any]:
    return {"betas": config.constants.betas, "eps": config.constants.eps}


def _adamw_8bit(settings: list[dict[str, Any]], groups: Sequence[ParameterGroup], config: TrainConfig) -> Optimizer:
    from alignment.training.adamw_8bit import AdamWOfBits  # not above: an extra

    bits = [{"optim_bits": 8 if group.treatment.is_special else 32} for group in groups]
    is_paged = config.optimizer is OptimizerName.paged_adamw_8bit
    optimizer: Optimizer = AdamWOfBits(
        [each | own for each, own in zip(settings, bits, strict=True)], is_paged=is_paged, **_of_adam(config)
    )
    return optimizer


class MuonAndAdamW(Optimizer):
    """torch's Muon for some groups and torch's AdamW for the others, with one list of groups and one of states: for
    schedules, engines and checkpoints it is a single optimizer."""

    def __init__(self, settings: list[dict[str, Any]], is_muon: list[bool], config: TrainConfig) -> None:
        """Muon's update has the length of AdamW's (arXiv:2502.16982, eq. 4): 0.2 sqrt(max(rows, columns)) times one
        that is orthogonal."""
        marked = [each | {"is_muon": chosen} for each, chosen in zip(settings, is_muon, strict=True)]
        of_muon, of_adam = ([each for each in marked if each["is_muon"] is chosen] for chosen in (True, False))
        self._inner: dict[bool, Optimizer] = {}
        if of_muon:
            self._inner[True] = Muon(of_muon, momentum=config.constants.momentum or 0.0, adjust_lr_fn="match_rms_adamw")
        if of_adam:
            self._inner[False] = AdamW(of_adam, **_of_adam(config), fused=True)
        super().__init__(marked, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of both. What a checkpoint has replaced, groups and states, each is given anew."""
        for chosen, optimizer in self._inner.items():
            optimizer.param_groups = [group for group in self.param_groups if group["is_muon"] is chosen]
            optimizer.state = self.state
            optimizer.step()

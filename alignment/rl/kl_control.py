"""The weight of the KL to the reference over a run, which may adapt."""

import math
from typing import Any

from alignment.config.ppo import KLConfig, KLControl
from alignment.losses import adaptive_kl_weight


class KLController:
    """beta: what `kl.weight` is in each iteration."""

    def __init__(self, config: KLConfig) -> None:
        self.config = config
        self.weight = config.weight

    def update(self, kl: float, count: int) -> None:
        """After an iteration of `count` replies, on all processes, whose KL was `kl` a reply (mean, nats). One that is
        not finite, of an iteration whose steps were skipped for it, changes nothing."""
        if self.config.controller is KLControl.adaptive and math.isfinite(kl):
            assert self.config.target is not None
            self.weight = adaptive_kl_weight(
                self.weight, kl, target=self.config.target, count=count, horizon=self.config.horizon
            )

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state(self, state: dict[str, Any]) -> None:
        self.weight = float(state["weight"])

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
        """With what it began, by which a run that goes on with another `kl.weight` is known."""
        return {"weight": self.weight, "began": self.config.weight}

    def load_state(self, state: dict[str, Any]) -> None:
        """What it has adapted to, unless it is to begin anew with another weight, or not to adapt any more."""
        is_changed = float(state.get("began", self.config.weight)) != self.config.weight  # older checkpoints lack it
        if self.config.controller is KLControl.adaptive and not is_changed:
            self.weight = float(state["weight"])

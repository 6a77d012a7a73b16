"""What PPO carries from one iteration to the next, beside its models."""

from dataclasses import dataclass

from alignment.config.online import PPOConfig
from alignment.models.heads import LanguageModel
from alignment.rl.kl_control import KLController
from alignment.rl.moving_average import MovingAverage
from alignment.training.checkpoint import Stateful


@dataclass(slots=True)
class PPOState:
    """Each of them is part of a checkpoint."""

    controller: KLController
    average: MovingAverage | None

    def parts(self) -> dict[str, Stateful]:
        average: dict[str, Stateful] = {} if self.average is None else {"ema": self.average}
        return {"kl": self.controller, **average}


def build_state(config: PPOConfig, policy: LanguageModel) -> PPOState:
    return PPOState(
        KLController(config.kl),
        None if config.ppo.ema is None else MovingAverage(policy, config.ppo.ema),
    )

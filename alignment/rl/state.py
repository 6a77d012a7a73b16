"""What PPO carries along beside its models: the KL's controller, averages, other texts."""

from dataclasses import dataclass, replace

from alignment.config.tasks import PPOConfig
from alignment.data.batches import Batches, Packer
from alignment.data.load import Loaded
from alignment.losses import CrossEntropyLoss
from alignment.models.heads import LanguageModel
from alignment.rl.kl_control import KLController
from alignment.rl.moving_average import MovingAverage
from alignment.training.checkpoint import Stateful
from alignment.training.objectives import SFT
from alignment.training.step import Term


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


def inner_steps(config: PPOConfig) -> int:
    """Steps of actor and critic in one iteration."""
    return config.ppo.epochs * config.ppo.mini_batches


@dataclass(slots=True)
class Ptx:
    """The texts of PPO-ptx: other ones at every inner step of the run."""

    batches: Batches
    weight: float
    steps: int  # inner steps of an iteration

    def term(self, iteration: int, inner: int) -> Term:
        """What stands beside the actor's loss at inner step `inner` (from 0) of an iteration (from 1)."""
        texts = self.batches.step((iteration - 1) * self.steps + inner)
        return Term("ptx", SFT(CrossEntropyLoss()), texts, self.weight)


def build_ptx(texts: Loaded, config: PPOConfig, packer: Packer) -> Ptx:
    packer = replace(packer, config=replace(config.batch, size=config.ptx.size))
    return Ptx(Batches(texts.examples, packer, config.seed), config.ptx.weight, inner_steps(config))

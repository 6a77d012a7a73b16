"""PPO-ptx: other texts, whose likelihood each step of the actor raises too (Ouyang et al. 2203.02155, eq. 2)."""

from dataclasses import dataclass, replace

from alignment.config.online import PPOConfig
from alignment.data.batches import Batches, Packer
from alignment.data.loaded import Loaded
from alignment.losses import CrossEntropyLoss
from alignment.training.objectives import SFT
from alignment.training.setup import train_batches
from alignment.training.step import Term


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
    batches = train_batches(texts, packer, config.seed, config.ptx.data.train)
    return Ptx(batches, config.ptx.weight, config.ppo.inner_steps)

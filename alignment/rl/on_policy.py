"""What the methods that learn from the policy's own replies have in common."""

from dataclasses import dataclass, field
from pathlib import Path

from alignment.data.batches import Batches
from alignment.generation.diagnostics import derived
from alignment.rl.rollouts import Rollouts
from alignment.training.alarm import Alarm
from alignment.training.checkpoint import Stateful
from alignment.training.kept import Write
from alignment.training.merging import with_merging
from alignment.training.timer import StepTimer


@dataclass(slots=True)
class OnPolicy:
    """Everything that the loop asks of a `Method` but `collect` and `update`, which a method adds."""

    rollouts: Rollouts
    write: Write
    alarm: Alarm = field(init=False)

    def __post_init__(self) -> None:
        self.alarm = Alarm(self.rollouts.config.alarm)

    @property
    def train(self) -> Batches:
        return self.rollouts.batches

    @property
    def timer(self) -> StepTimer:
        return self.rollouts.timer

    @property
    def kl_limit(self) -> float | None:
        return None

    def begin(self, done: int) -> None:
        self.rollouts.begin(done)

    def evaluate(self, step: int) -> dict[str, float]:
        return self.rollouts.evaluate(step)

    def row(self, means: dict[str, float]) -> dict[str, float]:
        return derived(means)

    def learning_rate(self) -> float:
        return self.rollouts.engine.learning_rate()

    def parts(self) -> dict[str, Stateful]:
        return with_merging({"model": self.rollouts.engine})

    def save(self, folder: Path) -> None:
        self.write(folder)

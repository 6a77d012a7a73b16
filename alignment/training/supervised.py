"""The method of SFT and of all that train on rows as they are: a step minimises one objective over the next ones."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignment.data.batches import Batches
from alignment.data.pack import Batch
from alignment.distributed.engine import Engine
from alignment.training.best import Write
from alignment.training.checkpoint import Stateful
from alignment.training.metrics import Metrics
from alignment.training.nonfinite import NonFiniteGuard
from alignment.training.objectives import Objective
from alignment.training.step import evaluate_step, train_step
from alignment.training.timer import StepTimer, step_flops


class Supervised:
    """`evaluation` is the objective on `held_out`: DPO's has a reference table of its own."""

    alarm = None
    kl_limit = None

    def __init__(
        self,
        engine: Engine,
        objective: Objective[Any],
        evaluation: Objective[Any],
        *,
        train: Batches,
        held_out: Batches | None,
        save: Write,
    ) -> None:
        self.engine, self.objective, self.evaluation = engine, objective, evaluation
        self.train, self.held_out = train, held_out
        self.write = save
        self.timer = StepTimer(engine.device, step_flops(engine.num_weights, engine.num_trained))

    def begin(self, done: int) -> None:
        """Nothing but its engine changes as it goes on."""

    def collect(self, step: int) -> tuple[Metrics, Sequence[Batch]]:
        with self.timer.part("data"):
            micro_batches = self.train.step(step - 1)
            self.timer.count(micro_batches)
        return Metrics(), micro_batches

    def update(self, step: int, units: Sequence[Batch], nonfinite: NonFiniteGuard) -> Metrics:
        return train_step(self.engine, self.objective, units, partial(nonfinite.record, step))

    def evaluate(self, step: int) -> dict[str, float]:
        if self.held_out is None:
            return {}
        return evaluate_step(self.engine, self.evaluation, self.held_out.once()).means()

    def row(self, means: dict[str, float]) -> dict[str, float]:
        return means

    def learning_rate(self) -> float:
        return self.engine.learning_rate()

    def parts(self) -> dict[str, Stateful]:
        return {"model": self.engine}

    def save(self, folder: Path) -> None:
        self.write(folder)

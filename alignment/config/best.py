"""Which of a run's weights become its model, and when it ends for want of better ones."""

from dataclasses import dataclass
from enum import Enum

from alignment.config.base import Config
from alignment.config.errors import require


class Mode(str, Enum):
    """Which values of a metric are the better ones."""

    min = "min"
    """The smaller ones, as of a loss."""
    max = "max"
    """The larger ones, as of an accuracy or a reward."""


@dataclass(slots=True)
class BestConfig(Config):
    metric: str | None = None
    """A metric of the evaluations, such as eval/loss: `best/` and, at the end, `model/` are the weights with the best
    one. Evaluates before the first step too. Null: the model is that of the last step."""
    mode: Mode | None = None
    """Whether a smaller (min) or a larger (max) one is better. Null: a smaller one, of a loss; others must say."""
    patience: int | None = None
    """Evaluations in a row without a better one after which the run ends. Null: it never ends early."""

    def __post_init__(self) -> None:
        is_evaluated = self.metric is None or self.metric.startswith("eval/")
        require(is_evaluated, "train.best.metric must be one of an evaluation, eval/NAME, or null", self.metric)
        rule = "train.best.patience must be > 0 and needs train.best.metric"
        require(self.patience is None or (self.patience > 0 and self.metric is not None), rule, self.patience)
        require(self.mode is None or self.metric is not None, "train.best.mode needs train.best.metric", self.mode)
        rule = f"train.best.mode must be min or max for {self.metric}, which is no loss"
        require(self.metric is None or self.metric.endswith("loss") or self.mode is not None, rule, self.mode)

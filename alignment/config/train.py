"""Optimizer, schedule, evaluations, and what is done about a step without a number."""

import math
from dataclasses import asdict, dataclass, field
from enum import Enum

from alignment.config.base import Config
from alignment.config.best import BestConfig
from alignment.config.errors import require
from alignment.config.optimizer import CONSTANTS, Constants, OptimizerName

LEARNING_RATE = 1e-5
"""Where nothing says another: AdamW's, of a pretrained model's weights."""


class Schedule(str, Enum):
    cosine = "cosine"
    """Half a cosine from the learning rate down to train.min_learning_rate at the last step."""
    linear = "linear"
    """A straight line from the learning rate down to train.min_learning_rate at the last step."""
    constant = "constant"
    """The learning rate from the warm-up's end to the last step."""
    wsd = "wsd"
    """Warm-up, stable, decay (arXiv:2404.06395): the whole rate until the last train.decay_ratio of the steps, then
    half a cosine down. A longer run has more steps at the whole rate, and is otherwise as it was."""


class LearningRateRule(str, Enum):
    none = "none"
    """As it is given."""
    tokens = "tokens"
    """r * sqrt(learned tokens a step / 4 million) in its place, r = 3e-4, half of it from 30B weights on, and a sixth
    for Mistral and Gemma: as LLaMA-Factory has it after OpenChat (see memory.md). Of sft with all weights."""


FALLING = (Schedule.cosine, Schedule.linear, Schedule.wsd)
DECAY_RATIO = 0.1
MOST = 1e6  # passes: with all the rows that there are, steps that can be counted


class OnNonFinite(str, Enum):
    """What to do about a step whose loss or gradient is nan or infinite; the weights never see it."""

    stop = "stop"
    """The run ends."""
    skip = "skip"
    """The step is left out, and counted."""


@dataclass(slots=True)
class TrainConfig(Config):
    max_steps: int | None = None
    """Optimizer steps (PPO: iterations). Exactly one of `max_steps` and `epochs` is set; on the command line one takes
    the place of the recipe's other. 0: none; the model as it comes is evaluated on the held-out rows, and no model is
    left."""
    epochs: float | None = None
    """Passes over the rows of data.train; 0.5 is half a pass."""
    optimizer: OptimizerName = OptimizerName.adamw
    """What makes an update of the gradient; PPO's critic has it too (see memory.md)."""
    learning_rate: float = LEARNING_RATE
    """The highest one, which the warm-up rises to. PPO's critic has one of its own, critic.learning_rate."""
    learning_rate_rule: LearningRateRule = LearningRateRule.none
    """Whether the learning rate is the one given, or follows from how much a step learns from."""
    min_learning_rate: float = 0.0
    """Where cosine, linear and wsd end, in place of 0. A critic's rate ends at the same share of its highest one."""
    schedule: Schedule = Schedule.cosine
    """cosine and linear fall from the warm-up's end to the last step, constant stays, wsd falls at the end only."""
    decay_ratio: float = DECAY_RATIO
    """wsd: the share of the run's steps, its last ones, in which the learning rate falls."""
    warmup_steps: int = 0
    """Optimizer steps in which the learning rate rises from 0, which the first of them has."""
    warmup_ratio: float = 0.0
    """The share of the run's steps in which the learning rate rises, in place of warmup_steps."""
    weight_decay: float = 0.0
    """Of matrices, embeddings among them; biases and norms have none. Times the learning rate, apart from the gradient;
    sgd and lomo: in the gradient."""
    betas: list[float] | None = None
    """adamw, its kin (8 bits, bfloat16) and muon's AdamW: of the means of gradients and of their squares; null: [0.9,
    0.999]. lion: of its update and of its mean; null: [0.9, 0.99]."""
    eps: float | None = None
    """adamw, its kin (8 bits, bfloat16) and muon's AdamW: beside the root of the second mean; null: 1e-8."""
    momentum: float | None = None
    """muon and sgd: what is left of the earlier gradients' sum at each step; null: 0.95 of muon, 0 of sgd."""
    head_lr_ratio: float = 1.0
    """The learning rate of the head, as a multiple of the other weights': of a policy's output embeddings where they
    are not tied to the others, of a reward model's or critic's head."""
    embedding_lr_ratio: float = 1.0
    """The learning rate of the embeddings, likewise."""
    max_grad_norm: float = 1.0
    """A step's gradient that is longer is scaled down to this norm; inf: none is, which lomo asks for."""
    eval_every: int = 0
    """Steps between evaluations; 0: only after the last step."""
    eval_on_start: bool = False
    """Evaluate before the first step too."""
    best: BestConfig = field(default_factory=BestConfig)
    on_nonfinite: OnNonFinite = OnNonFinite.stop
    """A loss or gradient that is nan or infinite: stop the run, or skip the step and count it; its rows are saved."""

    def __post_init__(self) -> None:
        rule = "exactly one of train.max_steps and train.epochs must be set (train.max_steps=N train.epochs=null)"
        require((self.max_steps is None) != (self.epochs is None), rule, (self.max_steps, self.epochs))
        require(self.max_steps is None or self.max_steps >= 0, "train.max_steps must be >= 0", self.max_steps)
        rule = "train.best.metric must be null with train.max_steps=0, which leaves no model"
        require(self.max_steps != 0 or self.best.metric is None, rule, self.best.metric)
        require(self.epochs is None or self.epochs > 0, "train.epochs must be > 0", self.epochs)
        require(self.epochs is None or self.epochs < MOST, f"train.epochs must be below {MOST:g}", self.epochs)
        require(self.learning_rate > 0, "train.learning_rate must be > 0", self.learning_rate)
        for key, value in (
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
        ):
            require(value < math.inf, f"train.{key} must be finite", value)
        rule = f"train.min_learning_rate must be in [0, train.learning_rate), which is {self.learning_rate:g}"
        require(0 <= self.min_learning_rate < self.learning_rate, rule, self.min_learning_rate)
        rule = "train.min_learning_rate goes with a train.schedule that falls (cosine, linear, wsd)"
        require(self.schedule in FALLING or self.min_learning_rate == 0, rule, self.min_learning_rate)
        require(0 < self.decay_ratio <= 1, "train.decay_ratio must be in (0, 1]", self.decay_ratio)
        rule = "train.decay_ratio goes with train.schedule=wsd"
        require(self.schedule is Schedule.wsd or self.decay_ratio == DECAY_RATIO, rule, self.decay_ratio)
        require(self.warmup_steps >= 0, "train.warmup_steps must be >= 0", self.warmup_steps)
        require(0 <= self.warmup_ratio < 1, "train.warmup_ratio must be in [0, 1)", self.warmup_ratio)
        both = self.warmup_steps > 0 and self.warmup_ratio > 0
        rule = "at most one of train.warmup_steps and train.warmup_ratio must be above 0"
        require(not both, rule, (self.warmup_steps, self.warmup_ratio))
        require(self.weight_decay >= 0, "train.weight_decay must be >= 0", self.weight_decay)
        self._check_optimizer()
        require(self.max_grad_norm > 0, "train.max_grad_norm must be > 0 (inf: no clipping)", self.max_grad_norm)
        require(self.eval_every >= 0, "train.eval_every must be >= 0", self.eval_every)
        rule = "train.eval_every must be > 0 with train.best.patience, which counts evaluations"
        require(self.eval_every > 0 or self.best.patience is None, rule, self.eval_every)

    @property
    def evaluates_at_start(self) -> str | None:
        """What has the weights evaluated as they are before the first step, KEY=VALUE; None where nothing does."""
        if self.max_steps == 0:
            return "train.max_steps=0"
        if self.best.metric is not None:
            return f"train.best.metric={self.best.metric}"
        return "train.eval_on_start=true" if self.eval_on_start else None

    @property
    def constants(self) -> Constants:
        """The optimizer's, as they are given or its own."""
        own = CONSTANTS[self.optimizer]
        return Constants(
            betas=own.betas if self.betas is None else (self.betas[0], self.betas[1]),
            eps=own.eps if self.eps is None else self.eps,
            momentum=own.momentum if self.momentum is None else self.momentum,
        )

    def _check_optimizer(self) -> None:
        """Raises:
        ConfigError: a constant is given that does nothing, or is no number that it can be.
        """
        of_all = {name: asdict(each) for name, each in CONSTANTS.items()}
        for key, value in (("betas", self.betas), ("eps", self.eps), ("momentum", self.momentum)):
            having = ", ".join(name.value for name, constants in of_all.items() if constants[key] is not None)
            rule = f"train.{key} goes with train.optimizer={having}: {self.optimizer.value} has none"
            require(value is None or of_all[self.optimizer][key] is not None, rule, value)
        if self.betas is not None:
            rule = "train.betas must be two numbers in [0, 1)"
            require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), rule, self.betas)
        if self.eps is not None:
            require(self.eps > 0, "train.eps must be > 0", self.eps)
            require(self.eps < math.inf, "train.eps must be finite", self.eps)
        if self.momentum is not None:
            require(0 <= self.momentum < 1, "train.momentum must be in [0, 1)", self.momentum)
        for key, ratio in (("head_lr_ratio", self.head_lr_ratio), ("embedding_lr_ratio", self.embedding_lr_ratio)):
            require(0 < ratio < math.inf, f"train.{key} must be > 0 and finite", ratio)

"""The parts a run's config is made of.  A value is checked where it is declared, by the name its user types."""

import math
from dataclasses import dataclass, field
from typing import Any

from alignment.config.best import BestConfig as BestConfig
from alignment.config.enums import (
    Attention,
    BadRow,
    Device,
    Format,
    Layout,
    Learn,
    Offload,
    OnNonFinite,
    Precision,
    Resume,
    Schedule,
    Template,
    Tracker,
)
from alignment.config.errors import ConfigError as ConfigError
from alignment.config.errors import UserError as UserError
from alignment.config.errors import require as require
from alignment.config.margin import MarginConfig

INPUT = {"input": True}  # marks a field as a file or folder that the run reads
PLACE = {"place": True}  # one as a folder that the run writes or uses
FUNCTION = {"function": True}  # and one as the dotted path of a function that it calls


@dataclass(slots=True)
class LoraConfig:
    rank: int = 0
    """0 trains all weights; above 0 the weights are frozen and adapters of this rank are trained (arXiv:2106.09685)."""
    alpha: int = 16
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["all-linear"])

    def __post_init__(self) -> None:
        require(self.rank >= 0, "model.lora.rank must be >= 0", self.rank)
        require(self.alpha > 0, "model.lora.alpha must be > 0", self.alpha)
        require(0 <= self.dropout < 1, "model.lora.dropout must be in [0, 1)", self.dropout)
        require(bool(self.targets), "model.lora.targets must name at least one module", self.targets)


@dataclass(slots=True)
class ModelConfig:
    path: str | None = field(default=None, metadata=INPUT)
    """A folder in Hugging Face form. Null: a random model built from `init`."""
    init: dict[str, Any] = field(default_factory=dict)
    """`model_type` and the fields of its transformers config; read only where `path` is null."""
    tokenizer: str | None = field(default=None, metadata=INPUT)
    """A tokenizer's folder. Null: the one in `path`; where that is null too, the small one in the package."""
    resize_embeddings: bool = False
    """Where the tokenizer has more pieces than the model embeds, add rows for them, drawn about the others' mean."""
    attention: Attention = Attention.auto
    gradient_checkpointing: bool = False
    router_loss: float | None = None
    """Weight of a mixture of experts' load-balancing loss (arXiv:2101.03961, eq. 4). Null: the model's own
    `router_aux_loss_coef`, where its config sets `output_router_logits`."""
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        rule = "model.path must name a folder, or model.init a model_type to build"
        require(self.path is not None or "model_type" in self.init, rule, self.path)
        require(self.router_loss is None or self.router_loss >= 0, "model.router_loss must be >= 0", self.router_loss)


@dataclass(slots=True)
class SourceConfig:
    path: str | None = field(default=None, metadata=INPUT)
    """.jsonl, .json, either with .gz, .parquet, or a folder saved by `datasets`. Null: none (or the embedded world)."""
    limit: int | None = None
    """Take the first rows only; in the embedded world, how many rows to make."""
    join: dict[str, str] = field(default_factory=dict, metadata=INPUT)
    """Further files, each by a name of yours, whose rows follow those of `path`, as those of earlier rounds do."""

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, "limit must be > 0", self.limit)
        require(not self.join or self.path is not None, "join needs path, whose rows come first", self.join)


@dataclass(slots=True)
class DataConfig:
    format: Format = Format.native
    train: SourceConfig = field(default_factory=SourceConfig)
    eval: SourceConfig = field(default_factory=SourceConfig)
    margin: MarginConfig = field(default_factory=MarginConfig)
    scores: dict[str, float] = field(default_factory=dict)
    """column -> weight: for tasks that learn scores, a reply's is the weighted sum of these columns. {}: `score`."""
    step_separator: str = "\n"
    """What stands between the steps of a reply, for tasks that learn from steps."""
    max_length: int = 1024
    """Tokens of a prompt and one of its completions; what is longer is cut, counted and said."""
    max_prompt_length: int = 512
    on_bad_row: BadRow = BadRow.error
    template: Template = Template.chat
    """chat: the tokenizer's chat template lays turns out. none: prompt and reply are texts and taken as they are."""
    learn: Learn = Learn.all
    """Which turns of the assistant a demonstration teaches; what a row gives as its `prompt` is context."""

    def __post_init__(self) -> None:
        rule = "data.max_prompt_length must be in [1, data.max_length)"
        require(1 <= self.max_prompt_length < self.max_length, rule, self.max_prompt_length)
        rule = "data.template=none goes with data.format=native or text, whose prompts and replies may be texts"
        require(self.template is Template.chat or self.format in (Format.native, Format.text), rule, self.format.value)
        given = self.scores.values()
        finite = all(isinstance(weight, int | float) and math.isfinite(weight) and weight for weight in given)
        require(finite, "data.scores must map to finite weights other than 0", self.scores)
        require(bool(self.step_separator), "data.step_separator must not be empty", self.step_separator)
        if self.format is Format.world:
            for name, source in (("train", self.train), ("eval", self.eval)):
                rule = f"data.{name}.path needs its data.format (data.format=world makes its own rows)"
                require(source.path is None, rule, source.path)


@dataclass(slots=True)
class BatchConfig:
    size: int = 64
    """Pairs, demonstrations or prompts a step, over all processes."""
    max_tokens: int = 8192
    """Tokens of one micro-batch, padding included. The gradient does not depend on it."""
    layout: Layout = Layout.auto

    def __post_init__(self) -> None:
        require(self.size > 0, "batch.size must be > 0", self.size)
        require(self.max_tokens > 0, "batch.max_tokens must be > 0", self.max_tokens)


@dataclass(slots=True)
class TrainConfig:
    max_steps: int | None = None
    """Optimizer steps (PPO: iterations). Exactly one of `max_steps` and `epochs` is set."""
    epochs: float | None = None
    learning_rate: float = 1e-5
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    """The share of the run's steps in which the learning rate rises, in place of warmup_steps."""
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    max_grad_norm: float = 1.0
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
        require(self.max_steps is None or self.max_steps > 0, "train.max_steps must be > 0", self.max_steps)
        require(self.epochs is None or self.epochs > 0, "train.epochs must be > 0", self.epochs)
        require(self.learning_rate > 0, "train.learning_rate must be > 0", self.learning_rate)
        require(self.warmup_steps >= 0, "train.warmup_steps must be >= 0", self.warmup_steps)
        require(0 <= self.warmup_ratio < 1, "train.warmup_ratio must be in [0, 1)", self.warmup_ratio)
        both = self.warmup_steps > 0 and self.warmup_ratio > 0
        rule = "at most one of train.warmup_steps and train.warmup_ratio must be above 0"
        require(not both, rule, (self.warmup_steps, self.warmup_ratio))
        require(self.weight_decay >= 0, "train.weight_decay must be >= 0", self.weight_decay)
        rule = "train.betas must be two numbers in [0, 1)"
        require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), rule, self.betas)
        require(self.eps > 0, "train.eps must be > 0", self.eps)
        require(self.max_grad_norm > 0, "train.max_grad_norm must be > 0 (.inf: no clipping)", self.max_grad_norm)
        require(self.eval_every >= 0, "train.eval_every must be >= 0", self.eval_every)
        rule = "train.eval_every must be > 0 with train.best.patience, which counts evaluations"
        require(self.eval_every > 0 or self.best.patience is None, rule, self.eval_every)


@dataclass(slots=True)
class CheckpointConfig:
    every: int = 0
    """Steps between checkpoints; 0: none but the finished model."""
    every_minutes: float = 0.0
    """Minutes between checkpoints, beside `every`; 0: the clock saves none."""
    keep: int = 2
    resume: Resume = Resume.auto

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every must be >= 0", self.every)
        rule = "checkpoint.every_minutes must be finite and >= 0"
        require(0 <= self.every_minutes < float("inf"), rule, self.every_minutes)
        require(self.keep > 0, "checkpoint.keep must be > 0", self.keep)


@dataclass(slots=True)
class LogConfig:
    every: int = 1
    trackers: list[Tracker] = field(default_factory=list)
    """Where else the metrics go, beside metrics.jsonl: [tensorboard, wandb]. Each needs its own package."""
    project: str | None = None
    """Where a tracker that has projects files the run, which is named by its folder. Null: alignment."""
    progress: bool = True
    samples: int = 0
    """How many prompts of each iteration and evaluation to write, with their replies, to samples.jsonl."""

    def __post_init__(self) -> None:
        require(self.every > 0, "log.every must be > 0", self.every)
        require(self.samples >= 0, "log.samples must be >= 0", self.samples)
        has_projects = any(kind not in (Tracker.tensorboard, Tracker.dvclive) for kind in self.trackers)
        rule = "log.project needs one of log.trackers that has projects"
        require(self.project is None or has_projects, rule, self.project)


@dataclass(slots=True)
class DistributedConfig:
    device: Device = Device.auto
    precision: Precision = Precision.auto
    """What forward and backward compute in; auto: bfloat16 on a GPU that has it, else float32. Weights that train and
    their optimizer are float32."""
    deterministic: bool = False
    """Ask for kernels that give the same bits at every run, which a CPU's do without being asked; slower on a GPU."""
    zero: int | None = None
    """DeepSpeed's ZeRO stage, 0 to 3: what the processes share out. Null: plain torch, in one process."""
    offload_optimizer: Offload = Offload.none
    """Where optimizer states and their float32 weights are kept: cpu needs zero >= 1, nvme zero=3."""
    offload_param: Offload = Offload.none
    """Where weights are kept while no layer uses them: needs zero=3."""
    nvme_path: str | None = field(default=None, metadata=PLACE)
    """A folder on a fast local disk, for an offload to nvme."""
    deepspeed_config: str | None = field(default=None, metadata=INPUT)
    """Further settings in DeepSpeed's own JSON; one that says otherwise than a key of ours is an error."""
    timeout_minutes: float = 30.0
    """A collective that takes longer ends the run."""

    def __post_init__(self) -> None:
        require(self.zero in (None, 0, 1, 2, 3), "distributed.zero must be null, 0, 1, 2 or 3", self.zero)
        rule = "distributed.deepspeed_config needs distributed.zero"
        require(self.deepspeed_config is None or self.zero is not None, rule, self.deepspeed_config)
        least = {Offload.none: 0, Offload.cpu: 1, Offload.nvme: 3}[self.offload_optimizer]
        rule = f"distributed.offload_optimizer={self.offload_optimizer.value} needs distributed.zero >= {least}"
        require((self.zero or 0) >= least, rule, self.zero)
        rule = f"distributed.offload_param={self.offload_param.value} needs distributed.zero=3"
        require(self.offload_param is Offload.none or self.zero == 3, rule, self.zero)
        uses_nvme = Offload.nvme in (self.offload_optimizer, self.offload_param)
        rule = "distributed.nvme_path goes with an offload to nvme"
        require(uses_nvme == (self.nvme_path is not None), rule, self.nvme_path)
        require(self.timeout_minutes > 0, "distributed.timeout_minutes must be > 0", self.timeout_minutes)

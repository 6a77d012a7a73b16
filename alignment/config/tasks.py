"""One root config per task."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from alignment.config.alarm import AlarmConfig
from alignment.config.generation import GenerationConfig
from alignment.config.parts import (
    FUNCTION,
    INPUT,
    PLACE,
    BatchConfig,
    DataConfig,
    ModelConfig,
    SourceConfig,
    require,
)
from alignment.config.ppo import (
    AdvantageConfig,
    CriticConfig,
    InnerConfig,
    KLConfig,
    PPOLosses,
    PtxConfig,
    RewardShapingConfig,
    RolesConfig,
    ScorerConfig,
)
from alignment.config.preference import CPOConfig as CPOConfig
from alignment.config.preference import DPOConfig as DPOConfig
from alignment.config.preference import ORPOConfig as ORPOConfig
from alignment.config.preference import ReferenceConfig as ReferenceConfig
from alignment.config.preference import RewardConfig as RewardConfig
from alignment.config.preference import SimPOConfig as SimPOConfig
from alignment.config.rules import (
    require_device,
    require_generator,
    require_own_world,
    require_rows,
    require_served,
    require_temperatures,
)
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.vocabulary import KLControl, Offload, Selection, Share
from alignment.losses import CrossEntropyLoss

STAGE = "@"  # "@sft/model" is the folder `model` of the pipeline's stage `sft`


@dataclass(slots=True)
class SFTConfig(TrainingConfig):
    loss: CrossEntropyLoss = field(default_factory=CrossEntropyLoss)


@dataclass(slots=True)
class PPOConfig(TrainingConfig):
    replies: ClassVar[bool] = True
    loss: PPOLosses = field(default_factory=PPOLosses)
    ppo: InnerConfig = field(default_factory=InnerConfig)
    reward: RewardShapingConfig = MISSING
    critic: CriticConfig = field(default_factory=CriticConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    ptx: PtxConfig = field(default_factory=PtxConfig)
    roles: RolesConfig = field(default_factory=RolesConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    missing_eos_penalty: float = 0.0
    """Taken off the score of a reply that was cut before its end."""
    gold: str | None = field(default=None, metadata=FUNCTION)
    """Dotted path of a function that is logged beside the learned reward and never learned from."""
    gold_model: str | None = field(default=None, metadata=INPUT)
    """A reward model in its place, where there is no such function; of other data or another seed than the reward's."""
    alarm: AlarmConfig = field(default_factory=AlarmConfig)

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        self._check_processes()
        both = self.gold is not None and self.gold_model is not None
        require(not both, "at most one of gold and gold_model must be set", (self.gold, self.gold_model))
        require_own_world(self.data, {**self.reward.functions(), "gold": self.gold})
        require(self.missing_eos_penalty >= 0, "missing_eos_penalty must be >= 0", self.missing_eos_penalty)
        rule = "model.lora.dropout must be 0 for PPO: with it the ratio is not 1 before the first step"
        require(self.model.lora.dropout == 0, rule, self.model.lora.dropout)
        full = self.generation.top_k == 0 and self.generation.top_p == 1
        rule = "generation.top_k and top_p must be 0 and 1 for PPO, whose log-probs are of the whole distribution"
        require(full, rule, (self.generation.top_k, self.generation.top_p))
        if self.roles.share is Share.lora:
            require(self.model.lora.rank > 0, "roles.share=lora needs model.lora.rank > 0", self.model.lora.rank)
            rule = "roles.share=lora takes one reward model as it is: no reward.models, no reward.normalize"
            require(not self.reward.models and not self.reward.normalize, rule, self.reward)
            require(not self.roles.offload, "roles.share=lora leaves nothing to offload", "roles.offload=true")
        rule = "generation.min_new_tokens must be 0 for PPO, whose log-probs know of no token that is held back"
        require(self.generation.min_new_tokens == 0, rule, self.generation.min_new_tokens)
        rule = f"ppo.mini_batches must be <= batch.size ({self.batch.size})"
        require(self.ppo.mini_batches <= self.batch.size, rule, self.ppo.mini_batches)
        replies = self.batch.size * self.ppo.replies
        rule = f"kl.horizon must be >= batch.size * ppo.replies ({replies}), the replies of one iteration"
        require(self.kl.controller is KLControl.fixed or self.kl.horizon >= replies, rule, self.kl.horizon)
        rule = "batch.size * ppo.replies must be > 1 with reward.whiten or reward.combine=llama2"
        require(replies > 1 or not self.reward.whitens, rule, replies)

    def _check_processes(self) -> None:
        zero = self.distributed.zero
        rule = "distributed.zero must not be 3 with roles.share=lora: two engines cannot share one backbone out"
        require(self.roles.share is not Share.lora or zero != 3, rule, zero)
        require_generator(self.generation, self.distributed)
        require_served(self.generation, self.model)
        rule = "ppo.ema must be null with distributed.offload_param=nvme"
        require(self.ppo.ema is None or self.distributed.offload_param is not Offload.nvme, rule, self.ppo.ema)
        require(not self.roles.offload or zero != 3, "roles.offload must be false with distributed.zero=3", True)

    def check_shares(self, processes: int) -> None:
        TrainingConfig.check_shares(self, processes)
        least = self.ppo.mini_batches * processes
        rule = f"batch.size must be a multiple of ppo.mini_batches times the number of processes ({least})"
        require(processes == 1 or self.batch.size % least == 0, rule, self.batch.size)
        rule = f"ptx.size must be a multiple of the number of processes ({processes})"
        require(self.ptx.weight == 0 or self.ptx.size % processes == 0, rule, self.ptx.size)


@dataclass(slots=True)
class RejectionConfig(RunConfig):
    replies: ClassVar[bool] = True
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    batch: BatchConfig = field(default_factory=BatchConfig)
    reward: ScorerConfig = MISSING
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    samples: int = 8
    """Replies sampled for each prompt (K of Llama 2, section 3.2.3)."""
    temperatures: list[float] = field(default_factory=list)
    """As many of the K at each of these, in place of generation.temperature."""
    select: Selection = Selection.best

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        require_rows(self.data, "train")
        require_device(self.model, self.distributed)
        require_generator(self.generation, self.distributed)
        require_served(self.generation, self.model)
        require_own_world(self.data, self.reward.functions())
        require(self.samples > 1, "samples must be > 1", self.samples)
        if self.temperatures:
            require_temperatures(self.temperatures, self.samples, self.generation)


@dataclass(slots=True)
class EvaluateConfig(RunConfig):
    replies: ClassVar[bool] = True
    runs: dict[str, str] = field(default_factory=dict, metadata=INPUT)
    """name -> a run's folder (its `model/` is evaluated, its `metrics.jsonl` drawn), or a model's folder."""
    baseline: str = MISSING
    """The name of the run that the others are compared with."""
    curves: dict[str, str] = field(default_factory=dict, metadata=INPUT)
    """Further runs whose curves the report draws, such as the reward model's."""
    data: DataConfig = MISSING
    batch: BatchConfig = field(default_factory=BatchConfig)
    reward: str | None = field(default=None, metadata=INPUT)
    """A reward model: the learned score of each reply, its accuracy on `pairs`, and the judge of best-of-n."""
    pairs: DataConfig = field(default_factory=DataConfig)
    """Held-out pairs (`pairs.eval`) for the reward model's accuracy."""
    gold: str | None = field(default=None, metadata=FUNCTION)
    """Dotted path of a function that scores replies exactly."""
    best_of: int = 0
    """n > 1 adds a method: the reward model's pick among n replies of the baseline."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        require_generator(self.generation, self.distributed)
        require_rows(self.data, "eval")
        require_own_world(self.data, {"gold": self.gold})
        require(bool(self.runs), "runs must name at least one run", self.runs)
        require(self.baseline in self.runs, f"baseline must be one of {sorted(self.runs)}", self.baseline)
        require(self.best_of == 0 or self.best_of > 1, "best_of must be 0 (off) or > 1", self.best_of)
        require(self.best_of == 0 or self.reward is not None, "best_of needs reward", self.reward)
        asked = self.pairs.eval != SourceConfig()
        require(not asked or self.reward is not None, "pairs.eval needs reward, the model it is for", self.reward)
        require(self.gold is not None or self.reward is not None, "one of gold and reward must be set", None)


@dataclass(slots=True)
class StageConfig:
    name: str = MISSING
    recipe: str = MISSING
    set: dict[str, Any] = field(default_factory=dict)
    """Overrides of the recipe's keys; a value that starts with `@name/` is a path in the folder of an earlier stage."""


@dataclass(slots=True)
class PipelineConfig(RunConfig):
    output_dir: str = field(default="runs/${hydra:job.config_name}", metadata=PLACE)
    """Not dated: run again, a pipeline goes on where it stopped and skips the stages that have not changed."""
    stages: list[StageConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        names = [stage.name for stage in self.stages]
        require(bool(names), "stages must name at least one stage", names)
        require(len(set(names)) == len(names), "stages must have different names", names)


TASKS: dict[str, type[RunConfig]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "orpo": ORPOConfig,
    "simpo": SimPOConfig,
    "cpo": CPOConfig,
    "ppo": PPOConfig,
    "rejection": RejectionConfig,
    "evaluate": EvaluateConfig,
    "pipeline": PipelineConfig,
}

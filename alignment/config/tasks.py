"""One root config per task."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from omegaconf import MISSING

from alignment.config.base import Config
from alignment.config.batch import BatchConfig, require_unread
from alignment.config.data import (
    DataConfig,
    ExampleKind,
    require_own_questions,
    require_read,
    require_rows,
)
from alignment.config.distributed import require_device, require_packable
from alignment.config.errors import require
from alignment.config.evaluate import EvaluateConfig
from alignment.config.fp8 import Fp8
from alignment.config.generation import (
    GenerationConfig,
    require_generator,
    require_launch,
    require_served,
    require_temperatures,
)
from alignment.config.marks import ANY, PLACE
from alignment.config.model import ModelConfig
from alignment.config.online import OnlineDPOConfig, PPOConfig
from alignment.config.reward import ScorerConfig
from alignment.config.run import RunConfig
from alignment.config.soft_prompt import KEY as SOFT_PROMPT
from alignment.config.sources import require_even, require_one_set
from alignment.config.supervised import (
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    RewardConfig,
    RewardProcessConfig,
    RewardRegressionConfig,
    SFTConfig,
    SimPOConfig,
)

STAGE = "@"  # "@sft/model" is the folder `model` of the pipeline's stage `sft`


class Selection(str, Enum):
    """Which of a prompt's replies are written."""

    best = "best"
    """The best, as its completion: a row for `sft`."""
    best_and_worst = "best_and_worst"
    """Both, as chosen and rejected, where they differ in score: a row for `dpo`."""


@dataclass(slots=True)
class RejectionConfig(RunConfig):
    replies: ClassVar[bool] = True
    is_policy: ClassVar[bool] = True
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    batch: BatchConfig = field(default_factory=BatchConfig)
    reward: ScorerConfig = MISSING
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    num_samples: int = 8
    """Replies sampled for each prompt (K of Llama 2, section 3.2.3)."""
    temperatures: list[float] = field(default_factory=list)
    """As many of the K at each of these, in place of generation.temperature; K must be a multiple of their number."""
    select: Selection = Selection.best
    """Which of a prompt's replies `selected.jsonl`, in the run's folder, has; blank ones and those cut before their end
    do not count."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        require_rows(self.data, "train")
        require_even(self.data.train, "rejection")
        require_one_set(self.data.eval, "data.eval", "rejection")
        require_read(self.data, ExampleKind.prompts)
        require(
            self.model.lora.rank == 0,
            "model.lora.rank must be 0 for rejection, which trains nothing",
            self.model.lora.rank,
        )
        rule = f"{SOFT_PROMPT} must be 0 for rejection, which trains nothing; model.path takes one that is trained"
        require(not self.model.has_soft_prompt, rule, self.model.soft_prompt.tokens)
        rule = "model.adapter must be null for rejection, which trains nothing; model.path takes an adapter too"
        require(self.model.adapter is None, rule, self.model.adapter)
        rule = "model.activation_offloading must be false for rejection, which trains nothing"
        require(not self.model.activation_offloading, rule, True)
        rule = "model.fp8 must be none for rejection, which trains nothing"
        require(self.model.fp8 is Fp8.none, rule, self.model.fp8.value)
        require_unread(self.batch, "rejection")
        require_device(self.model, self.distributed)
        require_packable(self.model, self.distributed.zero)
        require_generator(self.generation, self.distributed)
        require_launch(self.generation, self.launch, num_nodes=self.cluster.nodes)
        require_served(self.generation, self.model)
        require_own_questions(self.data, self.reward.functions())
        require(self.num_samples > 1, "num_samples must be > 1", self.num_samples)
        if self.temperatures:
            require_temperatures(self.temperatures, self.num_samples, self.generation)


@dataclass(slots=True)
class StageConfig(Config):
    name: str = MISSING
    """Its folder within the pipeline's, and what later stages refer to."""
    recipe: str = MISSING
    """The recipe that it runs: a name, or the path of a .yaml, from the pipeline's own file or the working folder."""
    set: dict[str, Any] = field(default_factory=dict)
    """Overrides of the recipe's keys; a value that starts with `@name/` is a path in the folder of an earlier stage, or
    in one of the pipeline's `inputs`."""
    enabled: bool = True
    """false leaves it out. Stages that read it take what an earlier run of the pipeline has left of it."""
    about: str = ""
    """What the stage is for, in a line that is said as it begins."""


@dataclass(slots=True)
class PipelineConfig(RunConfig):
    output_dir: str = field(default="runs/${hydra:job.config_name}", metadata=PLACE)
    """Not dated: run again, a pipeline goes on where it stopped and skips the stages that have not changed."""
    stages: list[StageConfig] = field(default_factory=list)
    """What is run, one after the other; the order counts."""
    only: list[str] = field(default_factory=list)
    """The names of the stages to run, [sft, dpo]; the others are left out as by enabled=false. []: all."""
    inputs: dict[str, str] = field(default_factory=dict, metadata=ANY)
    """name -> a file, a folder or a name on the hub, which stages read and none of them makes; they refer to it as
    `@name`."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        names = [stage.name for stage in self.stages]
        require(bool(names), "stages must name at least one stage", names)
        require(len(set(names)) == len(names), "stages must have different names", names)
        rule = "inputs must have other names than the stages"
        require(not set(names) & set(self.inputs), rule, sorted(set(names) & set(self.inputs)))
        unknown = [name for name in self.only if name not in names]
        require(not unknown, f"only must name stages, of {', '.join(names)}", unknown)
        rule = f"a stage must be left on, of {', '.join(names)} (stages.NAME.enabled, only)"
        require(any(map(self.runs, self.stages)), rule, None)

    def runs(self, stage: StageConfig) -> bool:
        """Whether the stage is not left out."""
        return stage.enabled and (not self.only or stage.name in self.only)


TASKS: dict[str, type[RunConfig]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "reward_regression": RewardRegressionConfig,
    "reward_process": RewardProcessConfig,
    "dpo": DPOConfig,
    "orpo": ORPOConfig,
    "simpo": SimPOConfig,
    "cpo": CPOConfig,
    "kto": KTOConfig,
    "online_dpo": OnlineDPOConfig,
    "ppo": PPOConfig,
    "rejection": RejectionConfig,
    "evaluate": EvaluateConfig,
    "pipeline": PipelineConfig,
}


def task_name(config: RunConfig) -> str:
    """As a recipe names it: `dpo`, or the dotted path of a module that is not ours."""
    return next(name for name, root in TASKS.items() if type(config) is root)

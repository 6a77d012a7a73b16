"""One root config per task."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from omegaconf import MISSING

from alignment.config.base import Config
from alignment.config.batch import BatchConfig, require_unread
from alignment.config.data import (
    DataConfig,
    EvalSource,
    ExampleKind,
    require_no_rows,
    require_own_questions,
    require_read,
    require_rows,
)
from alignment.config.distributed import require_device
from alignment.config.errors import require
from alignment.config.generation import GenerationConfig, require_generator, require_served, require_temperatures
from alignment.config.marks import ANY, FUNCTION, INPUT, MODEL, PLACE
from alignment.config.model import ModelConfig
from alignment.config.online import OnlineDPOConfig, PPOConfig
from alignment.config.reward import ScorerConfig
from alignment.config.run import RunConfig
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
    best = "best"
    best_and_worst = "best_and_worst"


@dataclass(slots=True)
class RejectionConfig(RunConfig):
    replies: ClassVar[bool] = True
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    batch: BatchConfig = field(default_factory=BatchConfig)
    reward: ScorerConfig = MISSING
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    num_samples: int = 8
    """Replies sampled for each prompt (K of Llama 2, section 3.2.3)."""
    temperatures: list[float] = field(default_factory=list)
    """As many of the K at each of these, in place of generation.temperature."""
    select: Selection = Selection.best
    """best: the best reply to each prompt, for SFT. best_and_worst: both, as a pair."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        require_rows(self.data, "train")
        require_read(self.data, ExampleKind.prompts)
        require(
            self.model.lora.rank == 0,
            "model.lora.rank must be 0 for rejection, which trains nothing",
            self.model.lora.rank,
        )
        require_unread(self.batch, "rejection")
        require_device(self.model, self.distributed)
        require_generator(self.generation, self.distributed)
        require_served(self.generation, self.model)
        require_own_questions(self.data, self.reward.functions())
        require(self.num_samples > 1, "num_samples must be > 1", self.num_samples)
        if self.temperatures:
            require_temperatures(self.temperatures, self.num_samples, self.generation)


@dataclass(slots=True)
class EvaluateConfig(RunConfig):
    replies: ClassVar[bool] = True
    runs: dict[str, str] = field(default_factory=dict, metadata=MODEL)
    """name -> a run's folder (its `model/` is evaluated, its `metrics.jsonl` drawn), a model's folder, or its name on
    the hub."""
    baseline: str = MISSING
    """The name of the run that the others are compared with."""
    curves: dict[str, str] = field(default_factory=dict, metadata=INPUT)
    """Further runs whose curves the report draws, such as the reward model's."""
    data: DataConfig = MISSING
    batch: BatchConfig = field(default_factory=BatchConfig)
    reward: str | None = field(default=None, metadata=MODEL)
    """A reward model: the learned score of each reply, its accuracy on `pairs`, and the judge of best-of-n."""
    pairs: DataConfig = field(default_factory=DataConfig)
    """Held-out pairs (`pairs.eval`) for the reward model's accuracy."""
    gold: str | None = field(default=None, metadata=FUNCTION)
    """Dotted path of a function that scores replies exactly."""
    num_samples: int = 1
    """n > 1 adds a method, best of n: the reward model's pick among n replies of the baseline to each prompt."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        require_generator(self.generation, self.distributed)
        require_rows(self.data, "eval")
        require_no_rows(self.data.train, "data.train", "evaluate")
        require_no_rows(self.pairs.train, "pairs.train", "evaluate")
        require_read(self.data, ExampleKind.prompts)
        require_read(self.pairs, ExampleKind.pairs, "pairs")
        require_unread(self.batch, "evaluate")
        require_own_questions(self.data, {"gold": self.gold})
        require(bool(self.runs), "runs must name at least one run", self.runs)
        require(self.baseline in self.runs, f"baseline must be one of {sorted(self.runs)}", self.baseline)
        require(self.num_samples > 0, "num_samples must be > 0", self.num_samples)
        rule = "num_samples must be 1 without reward, the model that picks the best reply"
        require(self.num_samples == 1 or self.reward is not None, rule, self.num_samples)
        asked = self.pairs.eval != EvalSource()
        require(not asked or self.reward is not None, "pairs.eval needs reward, the model it is for", self.reward)
        require(self.gold is not None or self.reward is not None, "one of gold and reward must be set", None)


@dataclass(slots=True)
class StageConfig(Config):
    name: str = MISSING
    """Its folder within the pipeline's, and what later stages refer to."""
    recipe: str = MISSING
    """The recipe that it runs."""
    set: dict[str, Any] = field(default_factory=dict)
    """Overrides of the recipe's keys; a value that starts with `@name/` is a path in the folder of an earlier stage, or
    in one of the pipeline's `inputs`."""


@dataclass(slots=True)
class PipelineConfig(RunConfig):
    output_dir: str = field(default="runs/${hydra:job.config_name}", metadata=PLACE)
    """Not dated: run again, a pipeline goes on where it stopped and skips the stages that have not changed."""
    stages: list[StageConfig] = field(default_factory=list)
    """What is run, one after the other; the order counts."""
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

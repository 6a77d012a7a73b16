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
    has_rows,
    require_no_rows,
    require_own_questions,
    require_read,
    require_rows,
)
from alignment.config.distributed import require_device
from alignment.config.errors import require
from alignment.config.generation import (
    GenerationConfig,
    require_generator,
    require_launch,
    require_served,
    require_temperatures,
)
from alignment.config.marks import ANY, COMPARED, FUNCTION, INPUT, PLACE, REWARD_MODEL
from alignment.config.model import ModelConfig, require_packable
from alignment.config.online import OnlineDPOConfig, PPOConfig
from alignment.config.reward import ScorerConfig
from alignment.config.run import RunConfig
from alignment.config.sources import Format, require_even, require_one_set
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
        rule = "model.adapter must be null for rejection, which trains nothing; model.path takes an adapter too"
        require(self.model.adapter is None, rule, self.model.adapter)
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
class EvaluateConfig(RunConfig):
    replies: ClassVar[bool] = True
    runs: dict[str, str] = field(default_factory=dict, metadata=COMPARED)
    """name -> a run's folder (its `model/` is evaluated, its `metrics.jsonl` drawn), a model's folder, or its name on
    the hub. {}: none, the reward model alone is evaluated, on `pairs`."""
    trust_remote_code: bool = False
    """Run the code that comes with models of `runs` and `reward`, as `model.trust_remote_code` does in training."""
    baseline: str = ""
    """The name of the run that the others are compared with. "": the first of runs."""
    curves: dict[str, str] = field(default_factory=dict, metadata=INPUT)
    """Further runs whose curves the report draws, such as the reward model's."""
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    reward: str | None = field(default=None, metadata=REWARD_MODEL)
    """A reward model, of any family: the learned score of each reply, its accuracy on `pairs`, and the judge of
    best-of-n."""
    pairs: DataConfig = field(default_factory=DataConfig)
    """Held-out pairs for the reward model's accuracy: overall, by rating, difference in length, and by the rows'
    `source`, `subset` and `tags`. Their rows are `pairs.eval`; `pairs.train` is refused, for nothing is trained,
    and so are `scores`, `step_separator` and `learn`, which are of rows of other kinds."""
    gold: str | None = field(default=None, metadata=FUNCTION)
    """Dotted path of a function that scores replies, such as an exact one."""
    num_samples: int = 1
    """n > 1 adds a method, best of n: the reward model's pick among n replies of the baseline to each prompt. 0: no
    replies are drawn, and perplexity is measured alone."""
    perplexity: bool | None = None
    """Whether each model's perplexity of the completions of `data.eval` is measured, and its bits per byte, by which
    models of other tokens can be compared. Null: where its rows have completions."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        require_generator(self.generation, self.distributed)
        require_launch(self.generation, self.launch, num_nodes=self.cluster.nodes)
        require_one_set(self.data.eval, "data.eval", "evaluate")
        require_one_set(self.pairs.eval, "pairs.eval", "evaluate")
        require_no_rows(self.data.train, "data.train", "evaluate")
        require_no_rows(self.pairs.train, "pairs.train", "evaluate")
        require_read(self.pairs, ExampleKind.pairs, "pairs")
        require_unread(self.batch, "evaluate")
        require(self.num_samples >= 0, "num_samples must be >= 0", self.num_samples)
        self.baseline = self.baseline or next(iter(self.runs), "")
        rule = "runs={name: FOLDER} must name what replies, or reward=FOLDER with pairs.eval.path=FILE a reward model"
        require(bool(self.runs) or self.reward is not None, rule, self.runs)
        rule = "launch.vllm must be 0 for an evaluation that draws no replies (no runs, or num_samples=0)"
        require(self.launch.vllm == 0 or bool(self.runs and self.num_samples), rule, self.launch.vllm)
        asked = has_rows(self.pairs, "eval")
        require(not asked or self.reward is not None, "pairs.eval needs reward, the model it is for", self.reward)
        self._check_runs() if self.runs else self._check_reward_alone()

    def _check_runs(self) -> None:
        require_rows(self.data, "eval")
        learned = self.num_samples == 0 or self.perplexity is True
        require_read(self.data, ExampleKind.demonstrations if learned else ExampleKind.prompts)
        require(self.baseline in self.runs, f"baseline must be one of {sorted(self.runs)}", self.baseline)
        rule = "num_samples must be 1 without reward, the model that picks the best reply"
        require(self.num_samples < 2 or self.reward is not None, rule, self.num_samples)
        rule = "num_samples must be 0 for data.format=text, whose texts have no prompt to reply to"
        require(self.data.format is not Format.text or self.num_samples == 0, rule, self.num_samples)
        if self.num_samples == 0:
            rule = "perplexity must be true or null with num_samples=0, which leaves nothing else to measure"
            require(self.perplexity is not False, rule, self.perplexity)
            require(self.gold is None, "gold must be null with num_samples=0, which draws no replies", self.gold)
            rule = "reward must be null with num_samples=0, which draws no replies, and without pairs.eval.path"
            require(self.reward is None or has_rows(self.pairs, "eval"), rule, self.reward)
        else:
            require_own_questions(self.data, {"gold": self.gold})

    def _check_reward_alone(self) -> None:
        rule = "pairs.eval.path is required for reward without runs, the models whose replies it would score"
        require(has_rows(self.pairs, "eval"), rule, None)
        without = "which needs runs, the models that reply: runs={name: FOLDER}"
        path = None if self.data.format is Format.toy else self.data.eval.path
        require(path is None, f"data.eval.path must be null, {without} (the reward model's are pairs.eval.path)", path)
        require(not self.baseline, f"baseline must be left out, {without}", self.baseline)
        require(self.gold is None, f"gold must be null, {without}", self.gold)
        require(self.num_samples <= 1, f"num_samples must be 1, {without}", self.num_samples)
        require(not self.perplexity, f"perplexity must be null, {without}", self.perplexity)


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

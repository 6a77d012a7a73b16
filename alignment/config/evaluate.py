"""What an evaluation measures, of which models and on which rows."""

from dataclasses import dataclass, field
from typing import ClassVar

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
from alignment.config.errors import require
from alignment.config.generation import Generation, GenerationConfig, require_generator, require_launch
from alignment.config.marks import COMPARED, FUNCTION, INPUT, REWARD_MODEL
from alignment.config.quantized_self import QuantizedSelf
from alignment.config.run import RunConfig
from alignment.config.sources import Format, require_one_set


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
    quantized: list[QuantizedSelf] = field(default_factory=list)
    """What the baseline is put beside: itself with its linear layers in fewer bits, a self at a time, by its replies,
    its perplexity, the KL of each next token and its preferences. Without runs the reward model is, on `pairs`."""
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
        if self.quantized:
            self._check_quantized()

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

    def _check_quantized(self) -> None:
        rule = f"quantized must be names, of {', '.join(QuantizedSelf.__members__)}"
        require(all(isinstance(each, QuantizedSelf) for each in self.quantized), rule, self.quantized)
        names = [each.value for each in self.quantized]
        require(len(set(names)) == len(names), "quantized must name each self once", names)
        rule = "distributed.zero must be null, 0, 1 or 2 with quantized, whose weights are whole in every process"
        require(self.distributed.zero != 3, rule, self.distributed.zero)
        rule = "generation.engine must be transformers with quantized, whose selves a server cannot hold"
        require(self.generation.engine is Generation.transformers, rule, self.generation.engine.value)
        taken = {name_of_self(self.baseline, each) for each in self.quantized} & set(self.runs)
        require(not taken, "runs must have other names than the baseline's quantized selves", sorted(taken))


def name_of_self(model: str, kind: QuantizedSelf) -> str:
    """Of a model in an evaluation's tables and files."""
    return f"{model} {kind.value}"

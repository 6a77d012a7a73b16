"""What every run has, and every run that trains."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from omegaconf import MISSING

from alignment.config.base import Config
from alignment.config.batch import BatchConfig
from alignment.config.checkpoint import MINUTES, CheckpointConfig
from alignment.config.cluster import ClusterConfig, Scheduler
from alignment.config.data import DataConfig, ExampleKind, require_read, require_rows
from alignment.config.distributed import DistributedConfig, Offload, require_device, require_packable
from alignment.config.errors import as_yaml, require
from alignment.config.hub import require_commits
from alignment.config.launch import LaunchConfig
from alignment.config.log import LogConfig
from alignment.config.lomo import require_lomo
from alignment.config.marks import PLACE
from alignment.config.model import LoraInit, ModelConfig
from alignment.config.optimizer import OF_BLOCKS, RATES, UNSHARDED, OptimizerName
from alignment.config.resume import ResumeConfig
from alignment.config.soft_prompt import KEY as SOFT_PROMPT
from alignment.config.soft_prompt import SoftPromptEncoder
from alignment.config.train import LearningRateRule, TrainConfig


@dataclass(slots=True)
class RunConfig(Config):
    """What every run has."""

    replies: ClassVar[bool] = False
    """Whether the task replies to prompts."""
    shares_rows: ClassVar[bool] = False
    """Whether its processes may share the tokens of a row."""
    trains: ClassVar[bool] = False
    """Whether the task trains a model."""
    is_policy: ClassVar[bool] = False
    """Whether `model.path` must be a language model; False: also where only who loads the model knows."""
    output_dir: str = field(default="runs/${hydra:job.config_name}/${now:%Y-%m-%d_%H-%M-%S}${asked:}", metadata=PLACE)
    """The run's folder. A run that was interrupted goes on where it names the same folder again. `${asked:}` is
    `_MODEL`, the name of the model that it begins with; `_sweep` for a sweep, and `_A-B` for an evaluation of runs A
    and B."""
    seed: int = 0
    """Of the order of rows, of drawn replies, of new weights and dropout."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    log: LogConfig = field(default_factory=LogConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    commits: dict[str, str] = field(default_factory=dict)
    """Name on the hub, `org/name`, `org/name@revision` or `datasets/org/name` -> the commit at which it is read, in
    place of the one that it is at when the run begins. A run writes down those of the bases of its adapters, a pipeline
    those of all that its stages read."""

    def __post_init__(self) -> None:
        require_commits(self.commits)
        require(self.seed >= 0, "seed must be >= 0", self.seed)
        require(self.seed < 2**63, "seed must be below 2**63", self.seed)
        rule = "log.samples must be 0 for a task that draws no replies to prompts"
        require(self.replies or self.log.samples == 0, rule, self.log.samples)
        rule = "log.ranges_every must be 0 for a task that trains no model"
        require(self.trains or self.log.ranges_every == 0, rule, self.log.ranges_every)
        rule = "launch.vllm must be 0 for a task that draws no replies to prompts"
        require(self.replies or self.launch.vllm == 0, rule, self.launch.vllm)
        shared = self.distributed.sequence_parallel
        rule = "distributed.sequence_parallel must be 1 for a task that does not train on rows as they are (sft does)"
        require(self.shares_rows or shared == 1, rule, shared)
        rule = "distributed.zero must be set for launch.processes > 1 (distributed=zero1, zero2 or zero3)"
        require(self.launch.processes == 1 or self.distributed.zero is not None, rule, self.distributed.zero)
        tasks = self.cluster.num_tasks()
        rule = f"distributed.zero must be set for the {tasks} processes of cluster (distributed=zero1, zero2 or zero3)"
        require(tasks == 1 or self.distributed.zero is not None, rule, self.distributed.zero)
        rule = "launch.processes must be 1 with cluster=slurm, whose tasks are the processes"
        require(self.launch.processes == 1 or self.cluster.scheduler is Scheduler.local, rule, self.launch.processes)

    def processes(self) -> int:
        """How many the config asks for."""
        return max(self.launch.processes, self.cluster.num_tasks())


@dataclass(slots=True)
class TrainingConfig(RunConfig):
    """What every run that trains a model has."""

    shares_rows: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    has_rate_rule: ClassVar[bool] = False
    """Whether its learning rate may follow from the tokens of a step."""
    example_kind: ClassVar[ExampleKind | None] = None
    """What the method takes from a row of data; each method says it."""
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    batch: BatchConfig = field(default_factory=BatchConfig)
    train: TrainConfig = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        require_rows(self.data, "train")
        if (asker := self.train.evaluates_at_start) is not None:
            require_rows(self.data, "eval", why=f" by {asker}, which evaluates on held-out rows")
        require_read(self.data, self.example_kind)
        require_device(self.model, self.distributed)
        rule = "model.lora.dora must be false with distributed.zero=3, which shards the weights whose rows it measures"
        require(not self.model.lora.dora or self.distributed.zero != 3, rule, self.model.lora.dora)
        if self.model.lora.target_parameters:
            self._check_experts()
        rule = "distributed.zero must be null, 0, 1 or 2 with model.lora.init=eva, which reads rows before "
        rule += "weights are shared out"
        is_eva = self.model.lora.init is LoraInit.eva
        require(not is_eva or self.distributed.zero != 3, rule, self.distributed.zero)
        places = self.distributed.offload_optimizer, self.distributed.offload_param
        rule = "distributed.offload_optimizer and offload_param must not be nvme with model.lora.merge_every, after "
        rule += "whose merges weights and states are written"
        require(self.model.lora.merge_every == 0 or Offload.nvme not in places, rule, Offload.nvme)
        model = self.model
        is_of_base = (model.path or model.adapter) is not None and not model.resize_embeddings
        is_of_base = is_of_base and model.lora.merge_every == 0 and model.rope.rope_type is None
        rule = "model.lora.merge must be true but for an adapter of a model.path that is read as it is, without "
        rule += "merge_every, resize_embeddings or model.rope"
        require(model.lora.merge or is_of_base, rule, False)
        rule = (
            f"model.lora.rank must be > 0 with model.quantization={self.model.quantization.value}: packed weights do "
        )
        rule += "not train, adapters on them do"
        require(not self.model.is_packed or self.model.has_adapter, rule, self.model.lora.rank)
        offloads = {self.distributed.offload_optimizer, self.distributed.offload_param}
        rule = "log.ranges_every must be 0 with distributed.offload_optimizer or offload_param, whose numbers are away"
        require(offloads == {Offload.none} or self.log.ranges_every == 0, rule, self.log.ranges_every)
        rule = "model.lora.dropout must be 0 with distributed.sequence_parallel > 1, whose processes draw it alike"
        require(self.distributed.sequence_parallel == 1 or not self.model.lora.dropout, rule, self.model.lora.dropout)
        require_packable(self.model, self.distributed.zero)
        if self.model.has_soft_prompt:
            self._check_soft_prompt()
        self._check_optimizer()
        rule = "checkpoint.every and checkpoint.every_minutes must be 0 with distributed.offload_optimizer=nvme, which "
        rule += "cannot be saved"
        if self.distributed.offload_optimizer is Offload.nvme:
            minutes = self.checkpoint.every_minutes
            saves = (self.checkpoint.every, 0.0 if minutes == MINUTES else minutes)  # the default is no wish
            require(saves == (0, 0), rule, saves)
            self.checkpoint = replace(self.checkpoint, every_minutes=0.0, save_last=False)
        if self.processes() > 1:  # torchrun's are not known here
            self.check_processes(self.processes())

    def _check_experts(self) -> None:
        """What adapters on experts cannot be combined with."""
        lora, zero = self.model.lora, self.distributed.zero
        rule = "distributed.zero must be null, 0, 1 or 2 with model.lora.target_parameters, for peft adds to experts "
        require(zero != 3, f"{rule}that are whole", zero)
        rule = "model.lora.{} with model.lora.target_parameters: an adapter of experts is a plain sum"
        require(lora.dropout == 0, rule.format("dropout must be 0"), lora.dropout)
        require(not lora.dora, rule.format("dora must be false"), lora.dora)
        is_plain = lora.init in (LoraInit.default, LoraInit.gaussian)
        require(is_plain, rule.format("init must be default or gaussian"), lora.init)
        require(lora.merge_every == 0, rule.format("merge_every must be 0"), lora.merge_every)

    def _check_soft_prompt(self) -> None:
        """What a soft prompt cannot be combined with."""
        zero, shared, model = self.distributed.zero, self.distributed.sequence_parallel, self.model
        rule = f"distributed.zero must be null, 0, 1 or 2 with {SOFT_PROMPT}, whose embeddings are whole"
        require(zero != 3, rule, zero)
        rule = f"distributed.sequence_parallel must be 1 with {SOFT_PROMPT}, which is set into rows that are whole"
        require(shared == 1, rule, shared)
        rule = f"{SOFT_PROMPT} must be 0 but for a model.path that is read as it is, without model.rope, whose soft "
        rule += "prompt is what is left"
        is_of_base = (model.path or model.adapter) is not None and model.rope.rope_type is None
        require(is_of_base, rule, model.soft_prompt.tokens)

    @property
    def has_scalar_head(self) -> bool:
        """Whether a model trains that has a head of one number, in full beside adapters too."""
        return False

    def _check_optimizer(self) -> None:
        """What the optimizer and its groups cannot be combined with."""
        name, zero, offload = self.train.optimizer, self.distributed.zero, self.distributed.offload_optimizer
        whole = (None,) if name is OptimizerName.lomo else (None, 0)
        alone = " or ".join(map(as_yaml, whole))
        rule = f"distributed.zero must be {alone} with train.optimizer={name.value}, {UNSHARDED.get(name)}"
        require(name not in UNSHARDED or zero in whole, rule, zero)
        require_lomo(self.train, self.distributed, self.log)
        rule = f"distributed.offload_optimizer must be none with train.optimizer={name.value}, whose states are small; "
        rule += "train.optimizer=adamw can be offloaded"
        require(name not in OF_BLOCKS or offload is Offload.none, rule, offload)
        rule = "distributed.offload_optimizer=nvme takes train.optimizer=adamw alone"
        require(name is OptimizerName.adamw or offload is not Offload.nvme, rule, name)
        if name is OptimizerName.muon and (self.model.lora.rank > 0 or self.model.has_soft_prompt):
            self._check_constants_of_muon()
        if self.train.learning_rate_rule is not LearningRateRule.none:
            rule = "train.learning_rate_rule must be none but for sft of all weights by AdamW, which is what it is of"
            is_of_it = self.has_rate_rule and not self.model.has_adapter and name not in RATES
            require(is_of_it, rule, self.train.learning_rate_rule.value)
        for key, what, ratio, trains in (
            ("embedding_lr_ratio", "embeddings are", self.train.embedding_lr_ratio, False),
            ("head_lr_ratio", "the head is", self.train.head_lr_ratio, self.has_scalar_head),
        ):
            adapter = SOFT_PROMPT if self.model.has_soft_prompt else "model.lora.rank"
            rule = f"train.{key} must be 1 with {adapter} > 0, under which {what} not trained"
            rule += (
                " but by model.lora.modules_to_save, at the run's own rate" if self.model.lora.modules_to_save else ""
            )
            is_whole = self.model.lora.rank == 0 and not self.model.has_soft_prompt
            require(ratio == 1 or trains or is_whole, rule, ratio)

    def _check_constants_of_muon(self) -> None:
        """Of an adapter's matrices and of a soft prompt's embeddings, one of muon's two parts may have none."""
        lora, prompt, has_head = self.model.lora, self.model.soft_prompt, self.has_scalar_head
        is_all_muon = not (self.model.has_soft_prompt or lora.dora or lora.modules_to_save or has_head)
        rule = "train.{} must be null with train.optimizer=muon, whose {} {} no weight that trains here"
        require(not is_all_muon or self.train.betas is None, rule.format("betas", "AdamW", "has"), self.train.betas)
        require(not is_all_muon or self.train.eps is None, rule.format("eps", "AdamW", "has"), self.train.eps)
        is_all_adam = self.model.has_soft_prompt and prompt.encoder is SoftPromptEncoder.none and not has_head
        momentum = self.train.momentum
        require(not is_all_adam or momentum is None, rule.format("momentum", "momentum", "is of"), momentum)

    def optimizer_steps(self, num_steps: int) -> int:
        """How many the trained model's optimizer takes in `num_steps` steps of the loop."""
        return num_steps

    def check_processes(self, processes: int) -> None:
        """Raises:
        ConfigError: what a step learns from cannot be dealt out evenly.
        """
        shared = self.distributed.sequence_parallel
        rule = f"distributed.sequence_parallel must divide the number of processes ({processes}; launch.processes=N)"
        require(processes % shared == 0, rule, shared)
        rule = f"batch.size must be a multiple of the number of processes ({processes})"
        if shared > 1:
            rule += f" by distributed.sequence_parallel ({processes // shared})"
        require(self.batch.size % (processes // shared) == 0, rule, self.batch.size)

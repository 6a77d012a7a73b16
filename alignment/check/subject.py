"""What is checked: the run itself, in one process and on few rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TypeVar

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from alignment.config.batch import Layout
from alignment.config.cluster import ClusterConfig
from alignment.config.data import DataConfig, ExampleKind, SourceConfig
from alignment.config.distributed import DistributedConfig, Offload
from alignment.config.hub import located
from alignment.config.launch import LaunchConfig
from alignment.config.model import ModelConfig
from alignment.config.online import OnlineConfig, PPOConfig
from alignment.config.optimizer import OptimizerName
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.supervised import ReferencedConfig, ScalarConfig
from alignment.config.train import TrainConfig
from alignment.data.batches import Batches
from alignment.data.ends import end_of_turn
from alignment.data.loaded import Loaded
from alignment.data.pack import packed_length
from alignment.data.tokenize import Example
from alignment.distributed.device import choose_kernels, keep_freed_memory, tell_deepspeed
from alignment.distributed.engine import Engine
from alignment.distributed.sharded import placement_of
from alignment.generation.generate import end_ids
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.load import load_language_model, load_scalar_model
from alignment.tasks.run import device_of, task_module
from alignment.training.another_reference import require_reference_reads
from alignment.training.kto import num_prompts
from alignment.training.objectives import Objective
from alignment.training.reference import reference_logprobs
from alignment.training.setup import Prepared, build_engine, fill_adapter, prepare
from alignment.training.supervised import BuildObjective

ROWS = 1000  # of each source that are read
FEW = 8  # rows that a model is tried on
REPLY_TOKENS = 32  # of a reply that an online method learns from here

Run = TypeVar("Run", bound=RunConfig)
Trained = TypeVar("Trained", bound=TrainingConfig)
Source = TypeVar("Source", bound=SourceConfig)


def settle(config: RunConfig) -> None:
    """Make this process as one of the run's own: its kernels, its memory, and which device DeepSpeed is for."""
    device = device_of(config)
    tell_deepspeed(device)
    keep_freed_memory(device)
    choose_kernels(device, deterministic=config.distributed.deterministic)


def in_one_process(config: Run) -> Run:
    """The same run in this process; precision and device are kept."""
    distributed: DistributedConfig = replace(
        config.distributed,
        zero=None,
        sequence_parallel=1,
        offload_optimizer=Offload.none,
        offload_param=Offload.none,
        nvme_path=None,
        deepspeed_config=None,
    )
    return replace(config, distributed=distributed, launch=LaunchConfig(), cluster=ClusterConfig())


def few(config: Trained, size: int) -> Trained:
    """The run with few rows a step, without dropout, which is another in each pass; short replies where it draws some,
    and one pass over them where it is PPO."""
    config = replace(config, data=first_rows(config.data), batch=replace(config.batch, size=size))
    if config.model.lora.dropout:
        config = replace(config, model=replace(config.model, lora=replace(config.model.lora, dropout=0.0)))
    if config.train.optimizer is OptimizerName.lomo:  # the same update, of gradients that can be looked at
        config = replace(config, train=replace(config.train, optimizer=OptimizerName.sgd))
    if isinstance(config, OnlineConfig):
        length = min(REPLY_TOKENS, config.generation.max_new_tokens)
        config = replace(config, generation=replace(config.generation, max_new_tokens=length))
    if isinstance(config, PPOConfig):
        config = replace(
            config,
            ptx=replace(config.ptx, data=first_rows(config.ptx.data)),
            num_samples=2 if config.advantage.is_grouped else 1,
            ppo=replace(config.ppo, mini_batches=1, ema=None),
            critic=replace(config.critic, warmup=0),
        )
    return config


def first_rows(data: DataConfig) -> DataConfig:
    """The first `ROWS` of each source."""
    train = replace(data.train, mix={name: _limited(one) for name, one in data.train.mix.items()})
    held_out = replace(data.eval, sets={name: _limited(one) for name, one in data.eval.sets.items()})
    return replace(data, train=_limited(train), eval=_limited(held_out))


def _limited(source: Source) -> Source:
    if source.path is None and source.limit is None:
        return source
    return replace(source, limit=min(source.limit or ROWS, ROWS))


def shortest(examples: Sequence[Example], count: int) -> list[Example]:
    """The rows of fewest tokens, which cost least; in the order of the data where they are alike. Where there are fewer
    than `count`, some twice."""
    found = sorted(examples, key=lambda example: packed_length(example, Layout.shared))[:count]
    return list(islice(cycle(found), count))


def describe_rows(batches: Batches) -> str:
    """Which rows these are, by their lengths."""
    sizes = [packed_length(example, Layout.shared) for example in batches.examples]
    return f"the {len(sizes)} shortest rows, of {min(sizes)} to {max(sizes)} tokens with all their replies"


@dataclass(slots=True)
class Subject:
    """A run that trains one model on rows."""

    config: TrainingConfig
    prepared: Prepared
    model: LanguageModel | ScalarModel
    batches: Batches
    """Of few rows, in the layout that the model takes; one step holds all of them."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.prepared.tokenizer

    @property
    def train(self) -> Loaded:
        return self.prepared.train

    def end_ids(self) -> list[int]:
        """The tokens at which generation stops."""
        return ends_of(self.model, self.tokenizer, self.config.model)

    def engine(self, train: TrainConfig | None = None) -> Engine:
        """A new one around the model, with the run's optimizer and schedule or those of `train`."""
        config = replace(self.config, train=train or self.config.train)
        return build_engine(self.model, config, num_steps=self.batches.num_steps(config.train))

    def objective(self, engine: Engine) -> Objective:
        """The run's; its reference is the model as it is now, and is kept nowhere."""
        everything = range(len(self.batches.examples))
        build: BuildObjective[TrainingConfig] = vars(task_module(self.config))["objective"]
        return build(self.config, self.batches, lambda batches: reference_logprobs(engine, batches, everything))


def ends_of(model: LanguageModel | ScalarModel, tokenizer: PreTrainedTokenizerBase, settings: ModelConfig) -> list[int]:
    """The tokens at which generation stops; of a model that only scores, those in which the replies may end."""
    if isinstance(model, LanguageModel):
        return end_ids(model.hf, tokenizer)
    listed: list[int] = []
    if settings.path is not None and (located(settings.path) / GENERATION_CONFIG_NAME).is_file():
        own = GenerationConfig.from_pretrained(located(settings.path)).eos_token_id
        listed = own if isinstance(own, list) else [] if own is None else [own]
    turn = end_of_turn(tokenizer)
    return list(dict.fromkeys([tokenizer.eos_token_id, *listed, *([] if turn is None else [turn])]))


def subject_of(config: TrainingConfig) -> Subject:
    """The run on the shortest rows, `batch.size` of them: data first, as the run itself has it, then the model."""
    prepared = prepare(config)
    if isinstance(config, ReferencedConfig) and config.reference.path is not None:  # the check's own is the policy
        splits = [prepared.train, prepared.held_out]
        require_reference_reads(config.reference.path, config, prepared.tokenizer, splits)
    load = load_scalar_model if isinstance(config, ScalarConfig) else load_language_model
    torch.manual_seed(config.seed)
    model = load(config.model, prepared.tokenizer, placement_of(config.distributed))
    train, _ = prepared.batches(model)
    fill_adapter(model, config.model, train)
    rows = shortest(train.examples, config.batch.size)
    if config.example_kind is ExampleKind.labeled and num_prompts(rows) == 1:
        # KTO compares with replies to other prompts, and the shortest rows may have one
        everything = shortest(train.examples, len(train.examples))
        rows[-1] = next((row for row in everything if num_prompts([row, rows[0]]) == 2), rows[-1])
    return Subject(config, prepared, model, train.one_step_of(rows))


def every_other(subject: Subject) -> Subject:
    """On half of the rows, for what costs a backward pass each time and says as much of four rows as of eight. On all,
    where replies are labeled and the half would have one prompt."""
    rows, half = subject.batches.examples, subject.batches.examples[::2]
    is_one = subject.config.example_kind is ExampleKind.labeled and num_prompts(half) == 1
    return replace(subject, batches=subject.batches.one_step_of(rows if is_one else half))

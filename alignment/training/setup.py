"""What the tasks that train a model begin and end with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig
from alignment.config.data import DataConfig, ExampleKind, TrainSource, required
from alignment.config.errors import ConfigError
from alignment.config.margin import MarginScale
from alignment.config.model import LoraInit, ModelConfig
from alignment.config.optimizer import OptimizerName
from alignment.config.run import TrainingConfig
from alignment.config.saved_prompt import tokens_before
from alignment.data.batches import Batches, Packer
from alignment.data.carried import NOTHING, Carried
from alignment.data.held_out import hold_out, num_prompts, num_shared_prompts
from alignment.data.load import load_split
from alignment.data.loaded import Loaded
from alignment.data.margins import margin_words
from alignment.data.mixture import portions, weights_of
from alignment.data.numbers import numbers
from alignment.data.tokenize import Example
from alignment.distributed import collectives, sequence
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.engine import Engine, TorchEngine
from alignment.distributed.lomo import LomoEngine
from alignment.distributed.precision import compute_dtype
from alignment.distributed.ranges import RangeWatch
from alignment.models.adapters import lora_layers
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.init import config_of
from alignment.models.layer_names import layers_of
from alignment.models.layout import require_parts, settle_layout
from alignment.models.load import save_model
from alignment.models.positions import max_positions
from alignment.models.quantized import is_quantized
from alignment.models.sequence import require_heads
from alignment.models.tokenizer import prepare_tokenizer
from alignment.terminal import say
from alignment.training.merging import merging_of
from alignment.training.optim import build_optimizer, restarts_of


@dataclass(slots=True)
class Prepared:
    """Tokenizer and data, before any weights are loaded: the user's mistakes are found here."""

    tokenizer: PreTrainedTokenizerBase
    train: Loaded
    held_out: Loaded | None
    config: TrainingConfig

    def batches(self, model: LanguageModel | ScalarModel) -> tuple[Batches, Batches | None]:
        """Training and held-out data in the layout that this model takes."""
        with sequence.each_alone():
            batch = replace(self.config.batch, layout=settle_layout(model, self.config.batch.layout))
        require_parts(model, batch.layout)
        packer, seed = packer_of(batch, self.tokenizer, model), self.config.seed
        train = train_batches(self.train, packer, seed, self.config.data.train)
        if self.held_out is None:
            return train, None
        sets = portions(self.held_out.sources, self.held_out.sources)
        return train, Batches(self.held_out.examples, packer, seed, sets)


def packer_of(config: BatchConfig, tokenizer: PreTrainedTokenizerBase, model: LanguageModel | ScalarModel) -> Packer:
    """The packer of this process's share of each step, of what this model reads."""
    rank, num_ranks, prompt = sequence.rows_rank(), sequence.rows_size(), model.soft_prompt()
    before = 0 if prompt is None else prompt.length
    return Packer(config, tokenizer.pad_token_id, rank, num_ranks, counts=sequence.counts(), before=before)


def train_batches(loaded: Loaded, packer: Packer, seed: int, source: TrainSource) -> Batches:
    """The rows to learn from, those of several sources in the shares that `source` says."""
    weights = weights_of(source, loaded.sources)
    return Batches(loaded.examples, packer, seed, portions(loaded.sources, weights))


def prepare(config: TrainingConfig) -> Prepared:
    """Raises:
    ConfigError: the data cannot be learned from; names its key, or file and line.
    """
    need = config.example_kind
    if need is None:
        kinds = ", ".join(kind.value for kind in ExampleKind)
        raise ConfigError(f"{type(config).__name__}.example_kind must be one of {kinds}, got None")
    require_heads(config_of(config.model), config.distributed.sequence_parallel)
    tokenizer = prepare_tokenizer(config.model)
    train, held_out = load_splits(config, tokenizer, need)
    say_weights([train, held_out])
    say_margins(train, config.data)
    require_positions(config.model, [train, held_out], config.data)
    return Prepared(tokenizer, train, held_out, config)


def load_splits(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, need: ExampleKind, carried: Carried = NOTHING
) -> tuple[Loaded, Loaded | None]:
    """The rows to learn from and the held-out ones, with a line on each, and on the prompts that both have.

    Args:
        carried: what prompts keep of their rows.

    Raises:
        as `load_split`, and ConfigError: there are no rows to learn from, or none are left.
    """
    data = config.data
    train = required_split("train", data, tokenizer, need, carried=carried)
    if data.eval.fraction is None:
        held_out = say_split(load_split("eval", data, tokenizer, need, carried=carried), "eval")
        shared, asked = (0, 0) if held_out is None else num_shared_prompts(train, held_out)
        if shared:
            say(f"WARNING: {shared} of the {asked} prompts of data.eval are in data.train too, which is learned from")
        return train, held_out
    train, held_out = hold_out(train, data.eval.fraction, config.seed)
    out, left = (f"{len(each.examples)} rows of {num_prompts(each)} prompts" for each in (held_out, train))
    say(f"eval: {out}, held out of the training rows (data.eval.fraction={data.eval.fraction:g}); {left} are left")
    return train, held_out


def required_split(
    name: str,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    need: ExampleKind,
    *,
    part: str = "data",
    carried: Carried = NOTHING,
) -> Loaded:
    loaded = say_split(load_split(name, data, tokenizer, need, part=part, carried=carried), name)
    if loaded is None:
        raise ConfigError(f"{required(data, f'{part}.{name}')}, got null")
    return loaded


def say_split(loaded: Loaded | None, name: str) -> Loaded | None:
    if loaded is not None:
        say(loaded.summary(name))
    return loaded


def say_weights(splits: Sequence[Loaded | None]) -> None:
    """That rows count unequally, where they do."""
    weights = np.concatenate([numbers(each.examples, "weight") for each in splits if each is not None])
    if (weights != 1.0).any():
        say(f"rows count {weights.min():g} to {weights.max():g} in the loss, each by its `weight`")


def say_margins(train: Loaded, data: DataConfig) -> None:
    """Which margins the rows have, where they are asked for."""
    if data.margin.scale is not MarginScale.none and train.examples:
        of = f"{len(train.examples)} pairs (data.margin.scale={data.margin.scale.value})"
        say(f"margins of {of}: {margin_words(numbers(train.examples, 'margin'), data.margin.scale)}")


def require_positions(
    model: ModelConfig, splits: Sequence[Loaded | None], data: DataConfig, new_tokens: int = 0, *, part: str = "data"
) -> None:
    """The longest row, or prompt with `new_tokens` in reply, against the model's positions; beyond RoPE's is a warning.

    Args:
        part: where `data` is in the config.

    Raises:
        ConfigError: it is beyond a table of positions.
    """
    known = max_positions(config_of(model))
    examples = [loaded.examples for loaded in splits if loaded is not None and loaded.examples]
    prompts = [numbers(each, "prompt_length").max() for each in examples]
    rows = [numbers(each, "row_length").max() for each in examples]
    before = tokens_before(model)
    longest = before + int(max([prompt + new_tokens for prompt in prompts] + rows, default=0))
    if known.switch is not None and longest > known.switch:
        what = f"{longest} tokens in a row ({part}.max_length={data.max_length}) change what the model makes of shorter"
        say(f"{what} rows beside it in a batch, as its RoPE turns otherwise beyond {known.switch}")
    if known.limit is None or longest <= known.limit:
        return
    key, value = f"{part}.max_length", f"rows of up to {longest} tokens ({part}.max_length={data.max_length})"
    value += f", {before} of its soft prompt" if before else ""
    if new_tokens:
        key = f"{part}.max_prompt_length + generation.max_new_tokens"
        value = f"prompts of up to {longest - new_tokens} tokens and replies of {new_tokens}"
    if known.hard:
        raise ConfigError(f"{key} must be <= {known.limit}, the positions of the model, got {value}")
    said = f"WARNING: {key} reaches beyond the {known.limit} positions that the model was made for: {value}"
    say(f"{said}; keep within them, or scale its RoPE (model.rope)")


def fill_adapter(model: LanguageModel | ScalarModel, config: ModelConfig, train: Batches) -> None:
    """Begin a new adapter at the rows that it will train on, where `model.lora.init` asks for it: at their replies, or
    where these are drawn, at the prompts."""
    if config.lora.init is LoraInit.eva and lora_layers(model.hf):
        from alignment.models.eva import fill_from_rows  # not above: it imports peft (see models/lora)

        packer = replace(train.packer, rank=0, num_ranks=1)
        rows = ([_text_of(train.examples[row]) for row in train.step_rows(step)] for step in count())
        steps = (packer.train_batches(examples) for examples in rows)
        fill_from_rows(model, chain.from_iterable(steps))


def _text_of(example: Example) -> Example:
    """Of a prompt that has no replies all but its first token as one, for that is much the same in all texts."""
    if example.completion_ids:
        return example
    ids = example.prompt_ids
    return replace(example, prompt_ids=ids[:1], completion_ids=(ids[1:] if len(ids) > 1 else ids,))


def build_engine(
    model: LanguageModel | ScalarModel, config: TrainingConfig, *, num_steps: int, learning_rate: float | None = None
) -> Engine:
    """`num_steps` of the schedule; the learning rate is `train.learning_rate` unless another is given."""
    learning_rate = config.train.learning_rate if learning_rate is None else learning_rate
    optimizer, scheduler = build_optimizer(
        model,
        config.train,
        num_steps=num_steps,
        learning_rate=learning_rate,
        lora_plus=config.model.lora.plus,
        restarts=restarts_of(config.model.lora, config.train, num_steps) if lora_layers(model.hf) else None,
    )
    watch, every = None, config.log.ranges_every
    if every > 0:
        watch = RangeWatch(layers_of(model), dtype=compute_dtype(config.distributed), every=every)
    plain = LomoEngine if config.train.optimizer is OptimizerName.lomo else TorchEngine
    kind, norm = plain if config.distributed.zero is None else DeepSpeedEngine, config.train.max_grad_norm
    engine: Engine = kind(model, optimizer, scheduler, config=config.distributed, max_grad_norm=norm, watch=watch)
    engine.merging = merging_of(engine, model, config.model.lora, num_steps=num_steps, seed=config.seed)
    return engine


def say_size(engine: Engine) -> None:
    """How large the model is, and how much of it trains: a line for the start of a run."""
    trained, number = engine.num_trained, engine.num_weights
    share = "all" if trained == number else f"{100 * trained / number:.2g}%"
    how = ", quantized" if any(is_quantized(module) for module in engine.model.modules()) else ""
    say(f"model: {number:,} weights{how}, {trained:,} trained ({share})")


def save_trained(
    engine: Engine, model: LanguageModel | ScalarModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """A model as it is now, in Hugging Face form. All processes call it and the main one writes."""
    with engine.partitioned():
        save_model(model, tokenizer, folder, write=collectives.is_main())

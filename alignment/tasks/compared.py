"""Who replies in an evaluation: each run's model, with its own tokenizer and chat template."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig
from alignment.config.data import ExampleKind
from alignment.config.distributed import DistributedConfig
from alignment.config.errors import ConfigError, error_prefix
from alignment.config.evaluate import EvaluateConfig
from alignment.config.model import ModelConfig, Quantization
from alignment.data.load import load_split
from alignment.data.loaded import Loaded
from alignment.data.records import DataError, Source
from alignment.data.tokenize import Example
from alignment.distributed.collectives import pick_device, sum_over_ranks
from alignment.distributed.frozen import FrozenEngine, frozen_engine
from alignment.distributed.sharded import placement_of
from alignment.generation.function import asked_by
from alignment.generation.samples import Samples, build_generator, sample
from alignment.generation.vllm import say_scaling
from alignment.models.forwards import forwards
from alignment.models.heads import LanguageModel
from alignment.models.layout import settle_layout
from alignment.models.load import load_frozen_language_model
from alignment.models.readout import token_logprobs
from alignment.models.tokenizer import prepare_tokenizer
from alignment.runs.folder import RunFolder
from alignment.terminal import say
from alignment.training.setup import packer_of, require_positions, say_split


@dataclass(slots=True)
class ComparedRun:
    """A run before its model is loaded: the prompts as its own tokenizer and template lay them out."""

    settings: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    prompts: Loaded

    def shares_vocabulary(self, other: "ComparedRun") -> bool:
        """Whether a token is the same piece to both."""
        return bool(self.tokenizer.get_vocab() == other.tokenizer.get_vocab())

    def reads_like(self, other: PreTrainedTokenizerBase) -> bool:
        """Whether both tokenizers make the same tokens of every dialogue."""
        own = self.tokenizer
        same = own.chat_template == other.chat_template and own.special_tokens_map == other.special_tokens_map
        return bool(same and own.get_vocab() == other.get_vocab())


def compared_runs(config: EvaluateConfig) -> dict[str, ComparedRun]:
    """Each run by its name, all with the same rows in the same order: those that all their templates take.

    Raises:
        ConfigError: fewer than two rows; or a run's tokenizer cannot be had, or its template refuses a row, under
            `data.on_bad_row=error`; names the run.
    """
    found: dict[str, ComparedRun] = {}
    for name in sorted(config.runs, key=lambda name: name != config.baseline):
        settings = model_config(config.runs[name], trusted=config.trust_remote_code)
        with error_prefix(f"runs.{name}"):
            tokenizer = prepare_tokenizer(settings)
        like = next((entry for entry in found.values() if entry.reads_like(tokenizer)), None)
        prompts = _prompts(config, tokenizer, name, is_first=not found) if like is None else like.prompts
        with error_prefix(f"runs.{name}"):
            new_tokens = config.generation.max_new_tokens if config.num_samples else 0
            require_positions(settings, [prompts], config.data, new_tokens)
            if config.num_samples:
                say_scaling(settings, config.generation)
        found[name] = ComparedRun(settings, tokenizer, prompts)
    loaded = [entry.prompts for entry in found.values()]
    common = set.intersection(*({record.source for record in each.records} for each in loaded))
    most = max(len(each.records) for each in loaded)
    if len(common) < most:
        say(f"{most - len(common)} of {most} rows are left out: the chat templates of some runs refuse them")
    if len(common) < 2:
        what = "prompts to reply to" if config.num_samples else "rows with a completion"
        raise ConfigError(f"data.eval must give at least 2 {what}, got {len(common)}")
    return {name: replace(found[name], prompts=only(found[name].prompts, common)) for name in config.runs}


def _prompts(config: EvaluateConfig, tokenizer: PreTrainedTokenizerBase, name: str, *, is_first: bool) -> Loaded:
    """With their completions where these alone are looked at."""
    kind = ExampleKind.prompts if config.num_samples else ExampleKind.demonstrations
    try:
        carried = asked_by({"gold": config.gold})
        loaded = load_split("eval", config.data, tokenizer, kind, carried=carried)
    except DataError as error:
        if is_first:
            raise
        raise ConfigError(f"runs.{name}: {error}") from error
    assert loaded is not None  # the config has seen to it
    say_split(loaded, "eval" if is_first else f"eval, for {name}")
    return loaded


def only(loaded: Loaded, sources: set[Source]) -> Loaded:
    """The rows that stand there."""
    kept = [place for place, record in enumerate(loaded.records) if record.source in sources]
    records, examples = [loaded.records[place] for place in kept], [loaded.examples[place] for place in kept]
    return replace(loaded, records=records, examples=examples)


@dataclass(slots=True)
class ComparedPolicy:
    """A run's model, whole on every process or (ZeRO 3) sharded among them."""

    entry: ComparedRun
    policy: LanguageModel
    engine: FrozenEngine
    batch: BatchConfig  # in a layout that it can read

    def reply(self, config: EvaluateConfig, name: str, *, replies: int) -> Samples:
        """To each prompt, all processes together; `name` is shown beside the progress bar."""
        return sample(
            build_generator(self.policy, self.entry.tokenizer, config.generation, config.distributed),
            self.engine,
            self.entry.prompts.records,
            self.entry.prompts.examples,
            replies=replies,
            seed=config.seed,
            describe=name,
        )

    def logprobs(self, samples: Samples, temperature: float) -> torch.Tensor:
        """[G] float64, the summed log-prob (nats) of each prompt's one reply, behind the prompt as this model is given
        it: the difference of two such sums is small beside them. The reply's tokens must be of its vocabulary."""
        examples: list[Example] = [
            replace(theirs, prompt_ids=own.prompt_ids)
            for theirs, own in zip(samples.examples, self.entry.prompts.examples, strict=True)
        ]
        return self.summed_logprobs(examples, temperature=temperature)

    def summed_logprobs(self, examples: Sequence[Example], *, temperature: float = 1.0) -> torch.Tensor:
        """[G] float64 on the CPU, nats: of the learned tokens of each one's one completion. All processes together."""
        engine = self.engine
        table = torch.zeros(len(examples), device=engine.device, dtype=torch.float64)
        batches = packer_of(self.batch, self.entry.tokenizer, self.policy).eval_batches(examples)
        read = partial(token_logprobs, engine.model, temperature=temperature)
        for batch, logprobs, counts in forwards(batches, read, device=engine.device, precision=engine.precision):
            if counts:
                table[batch.rows] = batch.sum_by_completion(logprobs.double())
        return sum_over_ranks(table).cpu()

    def logprobs_by_span(self, examples: Sequence[Example], counts: Sequence[Sequence[int]]) -> torch.Tensor:
        """[G, K] float64 on the CPU, nats: the same by spans of each one's tokens, of which `counts` [G][K] says how
        many are in each."""
        engine = self.engine
        table = torch.zeros(len(examples), len(counts[0]), device=engine.device, dtype=torch.float64)
        batches = packer_of(self.batch, self.entry.tokenizer, self.policy).eval_batches(examples)
        read = partial(token_logprobs, engine.model)
        for batch, logprobs, is_counted in forwards(batches, read, device=engine.device, precision=engine.precision):
            if is_counted:
                rows = batch.rows.tolist()
                parts = logprobs.double().split([size for row in rows for size in counts[row]])
                table[batch.rows] = torch.stack([part.sum() for part in parts]).view(len(rows), -1)
        return sum_over_ranks(table).cpu()


def load_policy(config: EvaluateConfig, name: str, entry: ComparedRun) -> ComparedPolicy:
    """Raises:
    ConfigError: the folder holds no such model; names the run.
    """
    with error_prefix(f"runs.{name}"):
        return policy_of(entry, config.batch, config.distributed)


def policy_of(entry: ComparedRun, batch: BatchConfig, distributed: DistributedConfig) -> ComparedPolicy:
    """A policy that replies and is never trained."""
    policy = _read(entry, distributed)
    batch = replace(batch, layout=settle_layout(policy, batch.layout))
    return ComparedPolicy(entry, policy, frozen_engine(policy, distributed), batch)


def packed_like(full: ComparedPolicy, name: str, quantization: Quantization, config: EvaluateConfig) -> ComparedPolicy:
    """The same model, packed as it is read. It is read in the full one's layout: of the same layers.

    Raises:
        ConfigError: it cannot be packed; names the run.
    """
    with error_prefix(f"runs.{name}"):
        entry = replace(full.entry, settings=replace(full.entry.settings, quantization=quantization))
        policy = _read(entry, config.distributed)
    return ComparedPolicy(entry, policy, frozen_engine(policy, config.distributed), full.batch)


def copy_of(full: ComparedPolicy, distributed: DistributedConfig) -> ComparedPolicy:
    """The same model with weights of its own, from memory and not from its folder; it is whole."""
    policy = deepcopy(full.policy)
    return ComparedPolicy(full.entry, policy, frozen_engine(policy, distributed), full.batch)


def _read(entry: ComparedRun, distributed: DistributedConfig) -> LanguageModel:
    policy = load_frozen_language_model(entry.settings, entry.tokenizer, placement_of(distributed))
    return policy.to(pick_device(distributed.device))


def model_config(path: str, *, trusted: bool = False) -> ModelConfig:
    """A run's folder holds its model in `model/`; a model's folder is one itself."""
    inside = RunFolder(path).model
    return ModelConfig(path=str(inside if inside.is_dir() else path), trust_remote_code=trusted)

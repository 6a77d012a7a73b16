"""Methods that train on rows as they are: a step minimises one objective over the next rows.

A method is its config and `objective(config, batches, reference)`, which gives what is minimised on these batches.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor
from xxhash import xxh3_128

from alignment.config.fp8 import Fp8
from alignment.config.run import TrainingConfig
from alignment.config.supervised import ReferencedConfig
from alignment.data.batches import Batches
from alignment.data.pack import Batch
from alignment.distributed.engine import Engine
from alignment.distributed.frozen import FrozenEngine, frozen_engine
from alignment.distributed.precision import precision_of
from alignment.distributed.sharded import placement_of
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.load import load_language_model
from alignment.terminal import say
from alignment.training.another_reference import load_reference, require_reference_reads
from alignment.training.checkpoint import Stateful
from alignment.training.kept import Write
from alignment.training.loop import fit
from alignment.training.merging import with_merging
from alignment.training.metrics import Metrics, of_sets, with_perplexity
from alignment.training.nonfinite import NonFiniteGuard
from alignment.training.objectives import Objective
from alignment.training.rate import with_rate
from alignment.training.reference import (
    ReferenceCache,
    cache_folder,
    reference_logprobs,
    require_reference,
    weights_digest,
)
from alignment.training.setup import Prepared, build_engine, fill_adapter, prepare, save_trained, say_size
from alignment.training.step import evaluate_step, train_step
from alignment.training.timer import StepTimer, step_flops

Config = TypeVar("Config", bound=TrainingConfig, contravariant=True)
Reference = Callable[[Batches], Tensor]
"""The log-probs that the model as it is before the first step, or that of `reference.path`, gives the replies of these
batches, as `reference_logprobs` has them. Only a method that asks pays for them; one whose config is a
`ReferencedConfig` keeps them for further runs."""
ReadReference = Callable[[Batches, list[int], str | None], Tensor]
"""The same of some rows alone, which come from a file."""


class BuildObjective(Protocol[Config]):
    def __call__(self, config: Config, batches: Batches, reference: Reference) -> Objective[Batch]: ...


def train_language_model(
    config: Config,
    folder: Path,
    objective: BuildObjective[Config],
    require: Callable[[Prepared], None] | None = None,
) -> str | None:
    """Train a model on the rows of `config.data` and leave it in the folder. Data first, of which `require` may ask
    something, the model then; `objective` is built for the training rows, and again for the held-out ones.

    Returns:
        why the run ended before its last step, where its config had it end.
    """
    prepared = prepare(config)
    if require is not None:
        require(prepared)
    tables = tables_of_another(config, prepared, objective)
    model = load_language_model(config.model, prepared.tokenizer, placement_of(config.distributed))
    train, held_out = prepared.batches(model)
    fill_adapter(model, config.model, train)
    config = with_rate(config, model, train)
    engine = build_engine(model, config, num_steps=train.num_steps(config.train))
    say_size(engine)
    save = partial(save_trained, engine, model, prepared.tokenizer)
    return fit(supervised(engine, model, config, objective, train, held_out, save, tables), config, folder)


def supervised(
    engine: Engine,
    model: LanguageModel | ScalarModel,
    config: Config,
    objective: BuildObjective[Config],
    train: Batches,
    held_out: Batches | None,
    save: Write,
    tables: Sequence[Tensor] = (),
) -> "Supervised":
    """`tables`: those that `objective` will ask for, where another model is the reference."""
    is_prompted = model.has_soft_prompt and not model.begins_adapted  # anew, which is no part of the reference
    if tables:
        if isinstance(config, ReferencedConfig):
            what = "rewards are 0 before step 1 only where it is the model that trains"
            say(f"reference: {config.reference.path}, read before the policy; {what}")
        given = iter(tables)
        learned, evaluated = _built(config, objective, train, held_out, lambda batches, rows, data: next(given))
    else:
        if isinstance(config, ReferencedConfig):
            whose = config.model.adapter or config.model.path or "model.init"
            what = "all rewards are 0 before step 1, and a tie counts as wrong"
            what = "what its embeddings begin as changes rewards before step 1 already" if is_prompted else what
            say(f"reference: {whose} {'without its soft prompt' if is_prompted else 'as the run began'}; {what}")
        with engine.partitioned() if isinstance(config, ReferencedConfig) else nullcontext():
            weights = _digest(model, config)
        read = partial(_table, engine, config, weights)
        with model.as_it_was(None) if is_prompted else nullcontext():
            learned, evaluated = _built(config, objective, train, held_out, read)
    return Supervised(engine, learned, evaluated, train=train, held_out=held_out, save=save)


def tables_of_another(config: Config, prepared: Prepared, objective: BuildObjective[Config]) -> list[Tensor]:
    """What `objective` asks of the reference where it is another model, in the order in which it asks; that model is
    let go before the policy is loaded. Empty where the policy is its own reference."""
    if not isinstance(config, ReferencedConfig) or config.reference.path is None:
        return []
    require_reference_reads(config.reference.path, config, prepared.tokenizer, [prepared.train, prepared.held_out])
    model = load_reference(config.reference.path, config.model, prepared.tokenizer, config.distributed)
    train, held_out = prepared.batches(model)
    weights, engine, tables = _digest(model, config), frozen_engine(model, config.distributed), list[Tensor]()

    def read(batches: Batches, rows: list[int], data: str | None) -> Tensor:
        tables.append(_table(engine, config, weights, batches, rows, data))
        return tables[-1]

    _built(config, objective, train, held_out, read)
    engine.release()
    return tables


def _built(
    config: Config, objective: BuildObjective[Config], train: Batches, held_out: Batches | None, read: ReadReference
) -> tuple[Objective[Batch], Objective[Batch]]:
    """The objective on the training rows that the run will ask for, and on the held-out ones."""

    def built(batches: Batches, rows: Iterable[int], data: str | None) -> Objective[Batch]:
        wanted = list(rows)
        return objective(config, batches, lambda asked: read(asked, wanted, data))

    num_steps = train.num_steps(config.train)
    evaluated = None
    if held_out is not None:
        evaluated = built(held_out, range(len(held_out.examples)), config.data.file_of("eval"))
    if num_steps == 0 and evaluated is not None:
        learned = evaluated  # which takes no step
    else:
        learned = built(train, train.rows_of(num_steps), config.data.file_of("train"))
    return learned, evaluated or learned


def _digest(model: LanguageModel | ScalarModel, config: TrainingConfig) -> xxh3_128 | None:
    """Of the reference's weights, by which its tables are kept; None where none are."""
    if isinstance(config, ReferencedConfig) and config.reference.cache and isinstance(model, LanguageModel):
        precision = precision_of(config.distributed).value
        is_fp8 = config.model.fp8 is not Fp8.none
        return weights_digest(model, f"{precision}, {config.model.fp8.value}" if is_fp8 else precision)
    return None


def _table(
    engine: Engine | FrozenEngine,
    config: TrainingConfig,
    weights: xxh3_128 | None,
    batches: Batches,
    rows: list[int],
    data: str | None,
) -> Tensor:
    cache = None
    if isinstance(config, ReferencedConfig) and weights is not None:
        cache = ReferenceCache(cache_folder(config.reference, data), weights)
    table = reference_logprobs(engine, batches, rows, cache=cache)
    require_reference(table, batches, rows, config.train.on_nonfinite)
    return table


class Supervised:
    """`evaluation` is the objective on `held_out`: DPO's has a reference table of its own."""

    alarm = None
    kl_limit = None

    def __init__(
        self,
        engine: Engine,
        objective: Objective[Any],
        evaluation: Objective[Any],
        *,
        train: Batches,
        held_out: Batches | None,
        save: Write,
    ) -> None:
        self.engine, self.objective, self.evaluation = engine, objective, evaluation
        self.train, self.held_out = train, held_out
        self.write = save
        self.timer = StepTimer(engine.device, step_flops(engine.num_weights, engine.num_trained))

    def begin(self, done: int) -> None:
        """Nothing but its engine changes as it goes on."""

    def collect(self, step: int) -> tuple[Metrics, Sequence[Batch]]:
        with self.timer.part("data"):
            micro_batches = self.train.step(step - 1)
            self.timer.count(micro_batches)
        return Metrics(), micro_batches

    def update(self, step: int, units: Sequence[Batch], nonfinite: NonFiniteGuard) -> Metrics:
        return train_step(self.engine, self.objective, units, partial(nonfinite.record, step))

    def evaluate(self, step: int) -> dict[str, float]:
        """Over all held-out rows, and over each set of them that has a name. What an objective asks of a whole
        evaluation, as KTO's baseline, is of a set."""
        if self.held_out is None:
            return {}
        sets = self.held_out.sets().items()
        found = {name: evaluate_step(self.engine, self.evaluation, self.held_out.once(rows)) for name, rows in sets}
        return of_sets(found, lambda name, means: with_perplexity(means))

    def row(self, means: dict[str, float]) -> dict[str, float]:
        return with_perplexity(means)

    def learning_rate(self) -> float:
        return self.engine.learning_rate()

    def parts(self) -> dict[str, Stateful]:
        return with_merging({"model": self.engine})

    def save(self, folder: Path) -> None:
        self.write(folder)

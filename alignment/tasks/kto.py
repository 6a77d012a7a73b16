"""Kahneman-Tversky optimisation (arXiv:2402.01306): replies that are desirable or not, without pairs."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from alignment.config.enums import ExampleKind
from alignment.config.sections import require
from alignment.config.tasks import KTOConfig
from alignment.data.batches import Batches
from alignment.distributed.engine import Engine
from alignment.distributed.sharded import placement_of
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model
from alignment.training.kto import KTO, with_replies_to_others
from alignment.training.loop import fit
from alignment.training.reference import cache_file, reference_logprobs
from alignment.training.setup import build_engine, prepare, save_trained
from alignment.training.supervised import Supervised


def run(config: KTOConfig, folder: Path) -> str | None:
    prepared = prepare(config, ExampleKind.labeled)
    for name, split in (("train", prepared.train), ("eval", prepared.held_out)):
        prompts = set() if split is None else {example.prompt_ids.tobytes() for example in split.examples}
        rule = f"data.{name} must have two prompts or more, for KTO's KL is of replies to other ones"
        require(split is None or len(prompts) > 1, rule, len(prompts))
    model = load_language_model(config.model, prepared.tokenizer, placement_of(config.distributed))
    train, held_out = prepared.batches(model)
    num_steps = train.num_steps(config.train)
    engine = build_engine(model, config, num_steps=num_steps)
    objective = evaluation = objective_of(
        engine, model, train, train.rows_of(num_steps), config, config.data.train.path
    )
    if held_out is not None:
        everything = range(len(held_out.examples))
        evaluation = objective_of(engine, model, held_out, everything, config, config.data.eval.path)
    save = partial(save_trained, engine, model, prepared.tokenizer)
    method = Supervised(engine, objective, evaluation, train=train, held_out=held_out, save=save)
    return fit(method, config, folder)


def objective_of(
    engine: Engine, model: LanguageModel, batches: Batches, rows: Iterable[int], config: KTOConfig, data: str | None
) -> KTO:
    """With the reference's tables of `rows`; `data` is the file that they come from."""
    mismatched = replace(batches, examples=with_replies_to_others(batches.examples, config.data.max_length))
    tables, rows = [], list(rows)
    for each in (batches, mismatched):
        with engine.partitioned():
            cache = cache_file(model, each.examples, config, data)
        tables.append(reference_logprobs(engine, each, rows, cache=cache))
    own, others = tables
    return KTO(config.loss, own, mismatched, others)

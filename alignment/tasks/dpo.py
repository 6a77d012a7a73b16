"""Direct preference optimisation (arXiv:2305.18290). The reference is the policy before its first step."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from alignment.config.enums import ExampleKind, MarginScale
from alignment.config.tasks import DPOConfig
from alignment.data.batches import Batches
from alignment.distributed.engine import Engine
from alignment.distributed.sharded import placement_of
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model
from alignment.terminal import say
from alignment.training.aot import dpo_objective
from alignment.training.loop import fit
from alignment.training.objectives import DPO
from alignment.training.reference import cache_file, reference_logprobs, require_reference
from alignment.training.setup import build_engine, prepare, save_trained
from alignment.training.supervised import Supervised


def run(config: DPOConfig, folder: Path) -> str | None:
    if config.data.margin.scale is not MarginScale.none:
        say(f"data.margin.scale={config.data.margin.scale.value}: DPO with an offset, loss.margin_scale * margin")
    prepared = prepare(config, ExampleKind.pairs)
    model = load_language_model(config.model, prepared.tokenizer, placement_of(config.distributed))
    train, held_out = prepared.batches(model)
    num_steps = train.num_steps(config.train)
    engine = build_engine(model, config, num_steps=num_steps)
    objective = evaluation = dpo(config, engine, model, train, train.rows_of(num_steps), config.data.train.path)
    if held_out is not None:
        everything = range(len(held_out.examples))
        evaluation = dpo(config, engine, model, held_out, everything, config.data.eval.path)
    save = partial(save_trained, engine, model, prepared.tokenizer)
    method = Supervised(engine, objective, evaluation, train=train, held_out=held_out, save=save)
    return fit(method, config, folder)


def dpo(
    config: DPOConfig, engine: Engine, model: LanguageModel, pairs: Batches, rows: Sequence[int], data: str | None
) -> DPO:
    """The loss beside what the reference says of the pairs at `rows`, which come from the file `data`."""
    with engine.partitioned():
        cache = cache_file(model, pairs.examples, config, data)
    table = reference_logprobs(engine, pairs, rows, cache=cache)
    require_reference(table, pairs, rows, config.train.on_nonfinite)
    return dpo_objective(config.loss, table)

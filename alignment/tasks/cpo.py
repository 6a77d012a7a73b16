"""Contrastive preference optimisation (arXiv:2401.08417): no reference model."""

from functools import partial
from pathlib import Path

from alignment.config.enums import ExampleKind
from alignment.config.tasks import CPOConfig
from alignment.distributed.sharded import placement_of
from alignment.models.load import load_language_model
from alignment.training.loop import fit
from alignment.training.objectives import CPO
from alignment.training.setup import build_engine, prepare, save_trained
from alignment.training.supervised import Supervised


def run(config: CPOConfig, folder: Path) -> str | None:
    prepared = prepare(config, ExampleKind.pairs)
    model = load_language_model(config.model, prepared.tokenizer, placement_of(config.distributed))
    train, held_out = prepared.batches(model)
    engine = build_engine(model, config, num_steps=train.num_steps(config.train))
    objective = CPO(config.loss)
    save = partial(save_trained, engine, model, prepared.tokenizer)
    method = Supervised(engine, objective, objective, train=train, held_out=held_out, save=save)
    return fit(method, config, folder)

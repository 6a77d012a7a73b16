"""Simple preference optimisation (arXiv:2405.14734): no reference model."""

from pathlib import Path

from alignment.config.tasks import SimPOConfig
from alignment.config.vocabulary import Need
from alignment.distributed.sharded import placement_of
from alignment.models.load import load_language_model
from alignment.tasks.prepare import build_engine, model_folder, prepare, save_trained
from alignment.training.loop import fit
from alignment.training.objectives import SimPO


def run(config: SimPOConfig, folder: Path) -> None:
    prepared = prepare(config, Need.pairs)
    model = load_language_model(config.model, prepared.tokenizer, placement_of(config.distributed))
    train, held_out = prepared.batches(model)
    engine = build_engine(model, config, num_steps=train.num_steps(config.train))
    objective = SimPO(config.loss)
    fit(engine, objective, objective, train=train, held_out=held_out, config=config, folder=folder)
    save_trained(engine, model, prepared.tokenizer, model_folder(folder))

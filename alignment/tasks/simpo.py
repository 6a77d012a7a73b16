"""Simple preference optimisation (arXiv:2405.14734): no reference model."""

from pathlib import Path

from alignment.config.supervised import SimPOConfig
from alignment.data.batches import Batches
from alignment.training.objectives import SimPO
from alignment.training.supervised import Reference, train_language_model


def objective(config: SimPOConfig, batches: Batches, reference: Reference) -> SimPO:
    return SimPO(config.loss)


def run(config: SimPOConfig, folder: Path) -> str | None:
    return train_language_model(config, folder, objective)

"""Contrastive preference optimisation (arXiv:2401.08417): no reference model."""

from pathlib import Path

from alignment.config.supervised import CPOConfig
from alignment.data.batches import Batches
from alignment.training.objectives import CPO
from alignment.training.supervised import Reference, train_language_model


def objective(config: CPOConfig, batches: Batches, reference: Reference) -> CPO:
    return CPO(config.loss)


def run(config: CPOConfig, folder: Path) -> str | None:
    return train_language_model(config, folder, objective)

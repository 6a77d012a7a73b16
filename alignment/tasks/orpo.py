"""Odds ratio preference optimisation (arXiv:2403.07691): no reference model."""

from pathlib import Path

from alignment.config.supervised import ORPOConfig
from alignment.data.batches import Batches
from alignment.training.objectives import ORPO
from alignment.training.supervised import Reference, train_language_model


def objective(config: ORPOConfig, batches: Batches, reference: Reference) -> ORPO:
    return ORPO(config.loss)


def run(config: ORPOConfig, folder: Path) -> str | None:
    return train_language_model(config, folder, objective)

"""Supervised fine-tuning on demonstrations, or on the chosen side of pairs."""

from pathlib import Path

from alignment.config.supervised import SFTConfig
from alignment.data.batches import Batches
from alignment.training.objectives import SFT
from alignment.training.supervised import Reference, train_language_model


def objective(config: SFTConfig, batches: Batches, reference: Reference) -> SFT:
    return SFT(config.loss)


def run(config: SFTConfig, folder: Path) -> str | None:
    return train_language_model(config, folder, objective)

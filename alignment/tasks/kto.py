"""Kahneman-Tversky optimisation (arXiv:2402.01306): replies that are desirable or not, without pairs."""

from dataclasses import replace
from pathlib import Path

from alignment.config.tasks import KTOConfig
from alignment.data.batches import Batches
from alignment.training.kto import KTO, with_replies_to_others
from alignment.training.supervised import Reference, train_language_model


def objective(config: KTOConfig, batches: Batches, reference: Reference) -> KTO:
    mismatched = replace(batches, examples=with_replies_to_others(batches.examples, config.data.max_length))
    return KTO(config.loss, reference(batches), mismatched, reference(mismatched))


def run(config: KTOConfig, folder: Path) -> str | None:
    return train_language_model(config, folder, objective)

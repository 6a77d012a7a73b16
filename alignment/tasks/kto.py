"""Kahneman-Tversky optimisation (arXiv:2402.01306): replies that are desirable or not, without pairs."""

from dataclasses import replace
from pathlib import Path

from alignment.config.errors import require
from alignment.config.supervised import KTOConfig
from alignment.data.batches import Batches
from alignment.training.kto import KTO, num_prompts, with_replies_to_others
from alignment.training.setup import Prepared
from alignment.training.supervised import Reference, train_language_model


def objective(config: KTOConfig, batches: Batches, reference: Reference) -> KTO:
    mismatched = replace(batches, examples=with_replies_to_others(batches.examples, config.data.max_length))
    own = reference(batches)
    of_mismatched = reference(mismatched) if config.loss.has_baseline else own  # unused without a baseline
    return KTO(config.loss, own, mismatched, of_mismatched)


def run(config: KTOConfig, folder: Path) -> str | None:
    return train_language_model(config, folder, objective, require_two_prompts)


def require_two_prompts(prepared: Prepared) -> None:
    """Raises:
    ConfigError: all rows of a split have the same prompt.
    """
    for name, split in (("train", prepared.train), ("eval", prepared.held_out)):
        rule = f"data.{name} must have two prompts or more, for KTO's KL is of replies to other ones"
        require(split is None or num_prompts(split.examples) > 1, rule, 1)

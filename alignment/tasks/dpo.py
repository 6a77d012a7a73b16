"""Direct preference optimisation (arXiv:2305.18290). The reference is the policy before its first step."""

from pathlib import Path

from alignment.config.margin import MarginScale
from alignment.config.supervised import DPOConfig
from alignment.data.batches import Batches
from alignment.terminal import say
from alignment.training.aot import dpo_objective
from alignment.training.objectives import DPO
from alignment.training.supervised import Reference, train_language_model


def objective(config: DPOConfig, batches: Batches, reference: Reference) -> DPO:
    return dpo_objective(config.loss, reference(batches))


def run(config: DPOConfig, folder: Path) -> str | None:
    if config.data.margin.scale is not MarginScale.none:
        say(f"data.margin.scale={config.data.margin.scale.value}: DPO with an offset, loss.margin_scale * margin")
    return train_language_model(config, folder, objective)

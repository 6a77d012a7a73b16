"""What training a reward model is, whatever it learns from."""

from pathlib import Path
from typing import TypeVar

from alignment.config.supervised import ScalarConfig
from alignment.distributed.collectives import is_main
from alignment.distributed.sharded import placement_of
from alignment.models.load import load_scalar_model
from alignment.models.reward_normalization import write_statistics
from alignment.training.loop import fit
from alignment.training.reward_normalization import reward_statistics
from alignment.training.setup import build_engine, fill_adapter, prepare, save_trained, say_size
from alignment.training.supervised import BuildObjective, supervised

Scalar = TypeVar("Scalar", bound=ScalarConfig)


def train_reward_model(config: Scalar, folder: Path, objective: BuildObjective[Scalar]) -> str | None:
    """Train a model with a scalar head, and leave it in the folder with the mean and deviation of its scores."""
    prepared = prepare(config)
    model = load_scalar_model(config.model, prepared.tokenizer, placement_of(config.distributed))
    train, held_out = prepared.batches(model)
    fill_adapter(model, config.model, train)
    engine = build_engine(model, config, num_steps=train.num_steps(config.train))
    say_size(engine)

    def save(into: Path) -> None:
        """With the mean and deviation of the scores of these very weights."""
        save_trained(engine, model, prepared.tokenizer, into)
        statistics = reward_statistics(engine, train, held_out)
        if is_main():
            write_statistics(statistics, into)

    return fit(supervised(engine, model, config, objective, train, held_out, save), config, folder)

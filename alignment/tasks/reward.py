"""A reward model by ranking pairs, with Llama 2's margins or HelpSteer2-Preference's weights where they are graded."""

from pathlib import Path

from alignment.config.enums import ExampleKind, MarginScale
from alignment.config.tasks import RewardConfig
from alignment.distributed.collectives import is_main
from alignment.distributed.sharded import placement_of
from alignment.models.load import load_scalar_model
from alignment.models.reward_normalization import write_statistics
from alignment.terminal import say
from alignment.training.loop import fit
from alignment.training.objectives import RewardRanking
from alignment.training.reward_normalization import reward_statistics
from alignment.training.setup import build_engine, prepare, save_trained
from alignment.training.supervised import Supervised


def run(config: RewardConfig, folder: Path) -> str | None:
    if config.data.margin.scale is MarginScale.none:
        say("data.margin.scale=none: the plain ranking loss, without margins")
    prepared = prepare(config, ExampleKind.pairs)
    model = load_scalar_model(config.model, prepared.tokenizer, placement_of(config.distributed))
    train, held_out = prepared.batches(model)
    engine = build_engine(model, config, num_steps=train.num_steps(config.train))
    objective = RewardRanking(config.loss)

    def save(into: Path) -> None:
        """With the mean and deviation of the scores of these very weights."""
        save_trained(engine, model, prepared.tokenizer, into)
        statistics = reward_statistics(engine, train, held_out)
        if is_main():
            write_statistics(statistics, into)

    method = Supervised(engine, objective, objective, train=train, held_out=held_out, save=save)
    return fit(method, config, folder)

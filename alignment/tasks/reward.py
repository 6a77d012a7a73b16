"""A reward model by ranking pairs, with Llama 2's margins or HelpSteer2-Preference's weights where they are graded."""

from pathlib import Path

from alignment.config.tasks import RewardConfig
from alignment.config.vocabulary import MarginScale, Need
from alignment.distributed.sharded import placement_of
from alignment.distributed.world import is_main
from alignment.models.load import load_scalar_model
from alignment.models.statistics import write_statistics
from alignment.tasks.prepare import build_engine, model_folder, prepare, save_trained
from alignment.terminal import say
from alignment.training.loop import fit
from alignment.training.objectives import RewardRanking
from alignment.training.statistics import reward_statistics


def run(config: RewardConfig, folder: Path) -> None:
    if config.data.margin.scale is MarginScale.none:
        say("data.margin.scale=none: the plain ranking loss, without margins")
    prepared = prepare(config, Need.pairs)
    model = load_scalar_model(config.model, prepared.tokenizer, placement_of(config.distributed))
    train, held_out = prepared.batches(model)
    engine = build_engine(model, config, num_steps=train.num_steps(config.train))
    objective = RewardRanking(config.loss)
    fit(engine, objective, objective, train=train, held_out=held_out, config=config, folder=folder)
    save_trained(engine, model, prepared.tokenizer, model_folder(folder))
    statistics = reward_statistics(engine, train, held_out)
    if is_main():
        write_statistics(statistics, model_folder(folder))

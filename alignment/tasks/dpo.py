"""Direct preference optimisation (arXiv:2305.18290). The reference is the policy before its first step."""

from functools import partial
from pathlib import Path

from alignment.config.tasks import DPOConfig
from alignment.config.vocabulary import Need
from alignment.distributed.sharded import placement_of
from alignment.models.load import load_language_model
from alignment.tasks.prepare import build_engine, prepare, save_trained
from alignment.training.loop import fit
from alignment.training.objectives import DPO
from alignment.training.reference import cache_file, reference_logprobs
from alignment.training.supervised import Supervised


def run(config: DPOConfig, folder: Path) -> str | None:
    prepared = prepare(config, Need.pairs)
    model = load_language_model(config.model, prepared.tokenizer, placement_of(config.distributed))
    train, held_out = prepared.batches(model)
    num_steps = train.num_steps(config.train)
    engine = build_engine(model, config, num_steps=num_steps)
    with engine.at_rest():
        cache = cache_file(model, train.examples, config, config.data.train.path)
    objective = evaluation = DPO(config.loss, reference_logprobs(engine, train, train.rows_of(num_steps), cache=cache))
    if held_out is not None:
        with engine.at_rest():
            cache = cache_file(model, held_out.examples, config, config.data.eval.path)
        everything = range(len(held_out.examples))
        evaluation = DPO(config.loss, reference_logprobs(engine, held_out, everything, cache=cache))
    save = partial(save_trained, engine, model, prepared.tokenizer)
    method = Supervised(engine, objective, evaluation, train=train, held_out=held_out, save=save)
    return fit(method, config, folder)

"""Direct preference optimisation (arXiv:2305.18290). The reference is the policy before its first step."""

from pathlib import Path

from alignment.config.tasks import DPOConfig
from alignment.config.vocabulary import MarginScale, Need
from alignment.distributed.sharded import placement_of
from alignment.models.load import load_language_model
from alignment.tasks.prepare import build_engine, model_folder, prepare, save_trained
from alignment.terminal import say
from alignment.training.loop import fit
from alignment.training.objectives import DPO
from alignment.training.reference import cache_file, reference_logprobs


def run(config: DPOConfig, folder: Path) -> None:
    if config.data.margin.scale is not MarginScale.none:
        say(f"data.margin.scale={config.data.margin.scale.value}: DPO with an offset, loss.margin_scale * margin")
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
    fit(engine, objective, evaluation, train=train, held_out=held_out, config=config, folder=folder)
    save_trained(engine, model, prepared.tokenizer, model_folder(folder))

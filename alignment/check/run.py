"""The verdicts on each task, in the order in which a fault shows first."""

from collections.abc import Iterator

from alignment.check import rows, text
from alignment.check.agreement import EVERYTHING, ONE_ROW, Reader, micro_batches, of_tokens, packed, padding
from alignment.check.learning import overfit
from alignment.check.online import on_evaluation, on_ppo, on_rejection
from alignment.check.plain import plain_model
from alignment.check.ranks import processes_agree
from alignment.check.rates import learning_rate
from alignment.check.replies import prompts_of, stops
from alignment.check.start import reference_start
from alignment.check.subject import FEW, NEEDS, Subject, few, in_one_process, subject_of
from alignment.check.verdict import Verdict
from alignment.config.errors import ConfigError
from alignment.config.generation import GenerationConfig
from alignment.config.inputs import check_inputs
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import DPOConfig, EvaluateConfig, PPOConfig, RejectionConfig
from alignment.config.vocabulary import Grade, Need
from alignment.distributed import world
from alignment.distributed.engine import Engine
from alignment.distributed.precision import precision_of
from alignment.models.heads import LanguageModel
from alignment.rollout.samples import build_generator, sample
from alignment.training.checkpoint import seed_everything

REPLY_TOKENS = 64  # of tasks that train on rows and do not say how long a reply may be


def check(config: RunConfig) -> Iterator[Verdict]:
    """The verdicts on a run, as they come. It writes nothing and leaves the model's folder as it is.

    Raises:
        UserError: the config or the data are wrong in a way that would end the run itself.
    """
    check_inputs(config)
    if world.is_launched():
        raise ConfigError("check starts the processes of launch.processes itself, got a launcher around it")
    seed_everything(config.seed)
    if isinstance(config, TrainingConfig):
        yield from on_ppo(config) if isinstance(config, PPOConfig) else on_rows(config)
        if config.processes() > 1:
            yield processes_agree(config)
    elif isinstance(config, RejectionConfig):
        yield from on_rejection(config)
    else:
        assert isinstance(config, EvaluateConfig)
        yield from on_evaluation(config)


def on_rows(config: TrainingConfig) -> Iterator[Verdict]:
    """Of a task that trains one model on rows."""
    need = NEEDS[type(config)]
    subject = subject_of(few(in_one_process(config), FEW), need)
    engine = subject.engine()
    text.show(subject.train.examples, subject.tokenizer)
    yield from of_the_data(subject, need)
    yield learning_rate(config, engine.num_weights)
    reader = Reader(subject.model, engine, precision_of(config.distributed))
    yield packed(reader, subject.batches, plain_model(subject.model, config.model))
    yield padding(reader, subject.batches, subject.tokenizer, subject.end_ids())
    objective = subject.objective(engine)
    if isinstance(config, DPOConfig):
        yield reference_start(subject, engine, objective)
    whole, cut = (of_tokens(subject.batches, budget).step(0) for budget in (EVERYTHING, ONE_ROW))
    yield micro_batches(engine, objective, whole, cut, precision_of(config.distributed))
    if isinstance(subject.model, LanguageModel):
        yield replies(subject, subject.model, engine)
    del engine, objective, reader
    yield overfit(subject)


def of_the_data(subject: Subject, need: Need) -> Iterator[Verdict]:
    """What can be said of rows, template and tokenizer."""
    train, tokenizer = subject.train, subject.tokenizer
    yield rows.read("train", train)
    if subject.prepared.held_out is not None:
        yield rows.read("eval", subject.prepared.held_out)
    yield rows.lengths(train, subject.model.hf.config)
    if need is Need.pairs:
        yield rows.margins(subject.config.data, train)
    labelled = rows.labels(subject.config.data, need)
    if labelled is not None:
        yield labelled
    yield text.opening(train, tokenizer)
    yield text.mask(train, tokenizer)
    yield text.ends(train, tokenizer, subject.end_ids())


def replies(subject: Subject, model: LanguageModel, engine: Engine) -> Verdict:
    """Some replies to the run's own prompts. Where nothing was learned yet, one that does not end is no fault."""
    config = subject.config
    records, examples = zip(*prompts_of(subject.train, FEW // 2), strict=True)
    generation = GenerationConfig(max_new_tokens=min(REPLY_TOKENS, config.data.max_length))
    generator = build_generator(model, subject.tokenizer, generation, config.distributed)
    samples = sample(generator, engine, list(records), list(examples), replies=1, seed=config.seed)
    return stops(samples, subject.tokenizer, generation.max_new_tokens, otherwise=Grade.warn)

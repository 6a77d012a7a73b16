"""The verdicts on each task, in the order in which a fault shows first."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from tempfile import TemporaryDirectory

from alignment.check import rows, template, text
from alignment.check.agreement import (
    EVERYTHING,
    ONE_ROW,
    Reader,
    judged_by,
    measured_step,
    micro_batches,
    of_tokens,
    packed,
    padding,
)
from alignment.check.learning import overfit
from alignment.check.online import on_evaluation, on_policy, on_rejection
from alignment.check.plain import plain_model
from alignment.check.ranks import processes_agree
from alignment.check.rates import learning_rate
from alignment.check.replies import begins_to_stop, end_probability, prompts_of
from alignment.check.start import reference_start
from alignment.check.subject import FEW, Subject, describe_rows, every_other, few, in_one_process, settle, subject_of
from alignment.check.verdict import Grade, Verdict
from alignment.config.errors import ConfigError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.generation import GenerationConfig
from alignment.config.inputs import check_inputs
from alignment.config.margin import MarginScale
from alignment.config.online import OnlineConfig
from alignment.config.packages import require_packages
from alignment.config.quantizable import require_quantizable
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.supervised import CPOConfig, DPOConfig, ORPOConfig, RewardConfig, SFTConfig
from alignment.config.tasks import RejectionConfig, task_name
from alignment.generation.samples import build_generator, sample
from alignment.models.heads import LanguageModel
from alignment.process import is_launched
from alignment.runs.folder import RunFolder
from alignment.tasks.max_tokens import with_max_tokens_of
from alignment.tasks.rows import require_one_pass
from alignment.tasks.run import check_processes, say_precision, task_module
from alignment.tasks.serving import served_apart
from alignment.terminal import say
from alignment.training.fp8 import require_fp8
from alignment.training.generators import seed_everything
from alignment.training.objectives import DPO
from alignment.training.rate import with_rate

REPLY_TOKENS, CALM = 64, 0.7  # replies of tasks that train on rows: how long, and at which temperature


def check(config: RunConfig) -> Generator[Verdict, None, None]:
    """The verdicts on a run, as they come. It writes nothing and leaves the model's folder as it is.

    Raises:
        UserError: the config or the data are wrong in a way that would end the run itself.
    """
    require_known(config)
    check_inputs(config)
    require_packages(config)
    require_quantizable(config)
    if is_launched():
        raise ConfigError("check starts the processes of launch.processes itself, got a launcher around it")
    settle(config)
    check_processes(config)
    require_fp8(config)
    require_one_pass(config)
    config = with_max_tokens_of(config, config.processes())
    seed_everything(config.seed)
    say_precision(config)
    with TemporaryDirectory() as folder, served_apart(config, RunFolder(folder)) as served:
        yield from verdicts(served)


def verdicts(config: RunConfig) -> Generator[Verdict, None, None]:
    """On the parts of the run, in this process, and of those that it asks for on their agreement."""
    if isinstance(config, TrainingConfig):
        yield from on_policy(config) if isinstance(config, OnlineConfig) else on_rows(config)
        if config.processes() > 1:
            yield processes_agree(config)
    elif isinstance(config, RejectionConfig):
        yield from on_rejection(config)
    elif isinstance(config, EvaluateConfig):
        yield from on_evaluation(config)


def require_known(config: RunConfig) -> None:
    """Raises:
    ConfigError: the task gives the check nothing that it could try.
    """
    if isinstance(config, RejectionConfig | EvaluateConfig):
        return
    what = (
        "build_trainer(config, folder)" if isinstance(config, OnlineConfig) else "objective(config, batches, reference)"
    )
    has = vars(task_module(config)).get(what.partition("(")[0])
    if not isinstance(config, TrainingConfig) or not callable(has):
        raise ConfigError(f"alignment check needs a function {what} in the task's module, got {task_name(config)!r}")


def on_rows(config: TrainingConfig) -> Iterator[Verdict]:
    """Of a task that trains one model on rows."""
    subject = subject_of(few(in_one_process(config), FEW))
    config = with_rate(config, subject.model, subject.batches)
    subject = replace(subject, config=replace(subject.config, train=config.train))
    engine = subject.engine()
    text.show(subject.train.examples, subject.tokenizer, "what carries loss")
    yield from of_the_data(subject)
    yield learning_rate(config, engine.num_weights)
    say(f"\nwhat follows is measured on {describe_rows(subject.batches)}")
    precision = judged_by(subject.model, config.distributed)
    reader = Reader(subject.model, engine, precision)
    plain = plain_model(subject.model, config.model)
    is_language = isinstance(subject.model, LanguageModel)
    yield template.layout(subject.train.records, subject.tokenizer, plain if is_language else None)
    yield packed(reader, subject.batches, plain)
    del plain
    yield padding(reader, subject.batches, subject.tokenizer, subject.end_ids())
    some = every_other(subject)
    objective = some.objective(engine)
    whole = measured_step(engine, objective, of_tokens(some.batches, EVERYTHING).step(0))
    if isinstance(config, DPOConfig) and isinstance(objective, DPO):
        first = whole
        if config.loss.rpo_alpha > 0 or config.data.margin.scale is not MarginScale.none:
            alone = replace(objective, loss=replace(objective.loss, margin_scale=0.0, rpo_alpha=0.0))
            first = measured_step(engine, alone, of_tokens(some.batches, EVERYTHING).step(0))
        yield reference_start(config, first, precision)
    cut = of_tokens(some.batches, ONE_ROW).step(0)
    yield micro_batches(whole, measured_step(engine, objective, cut), len(cut), precision)
    if isinstance(subject.model, LanguageModel):
        yield replies(subject, subject.model, reader)
    del engine, objective, reader, some
    yield overfit(subject)


def of_the_data(subject: Subject) -> Iterator[Verdict]:
    """What can be said of rows, template and tokenizer."""
    train, tokenizer = subject.train, subject.tokenizer
    yield rows.read("train", train, subject.config.data)
    if subject.prepared.held_out is not None:
        yield rows.read("eval", subject.prepared.held_out, subject.config.data)
    yield rows.lengths(train, subject.model.hf.config)
    reads_margins = isinstance(subject.config, RewardConfig | DPOConfig)
    if reads_margins or subject.config.data.margin.scale is not MarginScale.none:
        unread = Grade.ok if isinstance(subject.config, DPOConfig) else Grade.warn  # DPO is whole without them
        yield rows.margins(subject.config.data, train, unread)
    labelled = rows.labels(subject.config.data, subject.config.example_kind, train)
    if labelled is not None:
        yield labelled
    yield text.opening(train, tokenizer)
    yield text.mask(train, tokenizer)
    yield text.ends(train, tokenizer, subject.end_ids())


def replies(subject: Subject, model: LanguageModel, reader: Reader) -> Verdict:
    """Some replies to the run's own prompts, and what the model gives the end of the rows' own."""
    config = subject.config
    records, examples = zip(*prompts_of(subject.train, FEW // 2), strict=True)
    generation = GenerationConfig(max_new_tokens=min(REPLY_TOKENS, config.data.max_length), temperature=CALM)
    generator = build_generator(model, subject.tokenizer, generation, config.distributed)
    samples = sample(generator, reader.engine, list(records), list(examples), replies=1, seed=config.seed)
    known = end_probability(reader, subject.batches)
    return begins_to_stop(
        samples, subject.tokenizer, known, is_taught=isinstance(config, SFTConfig | ORPOConfig | CPOConfig)
    )

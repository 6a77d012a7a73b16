"""The verdicts on each task, in the order in which a fault shows first."""

from collections.abc import Iterator

from alignment.check.agreement import micro_batches, packed
from alignment.check.learning import overfit
from alignment.check.plain import plain_model
from alignment.check.rates import learning_rate
from alignment.check.start import reference_start
from alignment.check.subject import in_one_process, subject_of
from alignment.check.verdict import Verdict
from alignment.config.inputs import check_inputs
from alignment.config.parts import ConfigError
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import DPOConfig, ORPOConfig, RewardConfig, SFTConfig
from alignment.config.vocabulary import Need
from alignment.distributed import world
from alignment.tasks.run import task_name
from alignment.training.checkpoint import seed_everything

NEEDS = {SFTConfig: Need.demonstrations, RewardConfig: Need.pairs, DPOConfig: Need.pairs, ORPOConfig: Need.pairs}


def check(config: RunConfig) -> Iterator[Verdict]:
    """The verdicts on a run, as they come. It writes nothing and leaves the model's folder as it is.

    Raises:
        UserError: the config or the data are wrong in a way that would end the run itself.
    """
    check_inputs(config)
    if world.is_launched():
        raise ConfigError("check starts the processes of launch.processes itself, got a launcher around it")
    seed_everything(config.seed)
    if isinstance(config, TrainingConfig) and type(config) in NEEDS:
        yield from on_rows(config)
    else:
        raise ConfigError(f"check knows no {task_name(config)}")


def on_rows(config: TrainingConfig) -> Iterator[Verdict]:
    """Of a task that trains one model on rows."""
    subject = subject_of(in_one_process(config), NEEDS[type(config)])
    engine = subject.engine()
    yield learning_rate(config, engine.num_weights)
    yield packed(subject, engine, plain_model(subject.model, config.model))
    objective = subject.objective(engine)
    if isinstance(config, DPOConfig):
        yield reference_start(subject, engine, objective)
    yield micro_batches(subject, engine, objective)
    del engine, objective
    yield overfit(subject)

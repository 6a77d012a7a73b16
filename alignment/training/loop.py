"""The loop of every method: what a step learns from, the step, evaluations, log, checkpoints, and when it ends.

collect  ->  update  ->  (evaluate)  ->  log  ->  save
"""

from pathlib import Path
from typing import Any, Protocol, TypeVar

from alignment import preempt
from alignment.config.data import has_rows
from alignment.config.distributed import Offload
from alignment.config.run import TrainingConfig
from alignment.data.batches import Batches
from alignment.distributed.collectives import naming_rank, pick_device
from alignment.runs.folder import RunFolder
from alignment.terminal import say
from alignment.training.alarm import Alarm
from alignment.training.best import keeper_of
from alignment.training.checkpoint import Checkpoints, Stateful
from alignment.training.kept import Kept
from alignment.training.log import MetricsLog
from alignment.training.metrics import Metrics, Pending
from alignment.training.nonfinite import NonFiniteGuard, step_in_errors
from alignment.training.optim import lr_factor, warmup
from alignment.training.timer import StepTimer

Units = TypeVar("Units")
FEW_STEPS = 10  # of which one without a learning rate is worth a word


class Method(Protocol[Units]):
    """What the loop drives. All processes call all of it, in the same order; steps count from 1."""

    @property
    def train(self) -> Batches:
        """The rows that the steps go through: they say how many steps there are, and whose rows a step had."""
        ...

    @property
    def timer(self) -> StepTimer:
        """Times the parts of `collect`; those of the loop are `learn`, `eval` and `save`."""
        ...

    @property
    def alarm(self) -> Alarm | None:
        """Looks at each step's metrics and warns; None of a method without one."""
        ...

    @property
    def kl_limit(self) -> float | None:
        """Nats a reply: a step whose `kl`, as `collect` measures it, is above it is the last."""
        ...

    def begin(self, done: int) -> None:
        """`done` steps are taken already, and the parts are as they were after them."""
        ...

    def collect(self, step: int) -> tuple[Metrics, Units]:
        """What was measured of the weights before the step, and what the step learns from."""
        ...

    def update(self, step: int, units: Units, nonfinite: NonFiniteGuard) -> Metrics:
        """Learn from it: one or many calls of `train_step`, which tell `nonfinite` of what is no number."""
        ...

    def evaluate(self, step: int) -> dict[str, float]:
        """Means over held-out data, nothing where there is none. The log has them as `eval/NAME`."""
        ...

    def row(self, means: dict[str, float]) -> dict[str, float]:
        """The means of a row of the log, with what is no mean made from them."""
        ...

    def learning_rate(self) -> float: ...

    def parts(self) -> dict[str, Stateful]:
        """What of a method is in a checkpoint."""
        ...

    def save(self, folder: Path) -> None:
        """The model as it is now, in Hugging Face form."""
        ...


def fit(method: Method[Any], config: TrainingConfig, folder: Path) -> str | None:
    """Train for the configured steps, from the newest checkpoint on, and leave the model; evaluations are `eval/*`.

    Returns: why the run ended before its last step, where its config had it end.
    """
    files, num_steps = RunFolder(folder), method.train.num_steps(config.train)
    nonfinite = NonFiniteGuard(files.nonfinite, config.train.on_nonfinite, method.train)
    pending, keeper = Pending(), keeper_of(files.best, config.train.best, method.kl_limit)
    parts: dict[str, Stateful] = {**method.parts(), "pending": pending, "nonfinite": nonfinite, "best": keeper}
    parts |= {} if method.alarm is None else {"alarm": method.alarm}
    zero, device = config.distributed.zero, pick_device(config.distributed.device)
    checkpoints = Checkpoints(files.checkpoints, config.checkpoint, parts, zero=zero, device=device)
    done = restored(checkpoints, files)
    method.begin(done)
    save = checkpoints.before(method.save)
    say_beginning(method.train, config, num_steps)

    def evaluated(step: int) -> dict[str, float]:
        with method.timer.part("eval"), step_in_errors(step):
            return {f"eval/{name}": value for name, value in method.evaluate(step).items()}

    with checkpoints.finished(), MetricsLog(folder, config, method.timer, num_steps=num_steps, done=done) as log:
        if done == 0 and config.train.evaluates_at_start is not None:
            with naming_rank(0):
                found = evaluated(0)
                keeper.after_update(0, found, save)
                log.write(0, found)
        if num_steps == 0:
            return None
        for step in range(done + 1, num_steps + 1):
            if keeper.reason is not None:
                break
            preempt.at_step(step)
            with naming_rank(step):
                with step_in_errors(step):
                    measured, units = method.collect(step)
                if keeper.before_update(step, measured, save):
                    pending.add(measured)
                    log.write(step, {"epoch": method.train.epoch(step - 1), **method.row(pending.take())})
                    break
                learning_rate = method.learning_rate()
                with method.timer.part("learn"):
                    learned = method.update(step, units, nonfinite)
                nonfinite.require_learning(step, learned, num_steps=num_steps)
                measured = measured | learned
                if method.alarm is not None:
                    measured = measured | Metrics(method.alarm.watch(step, measured.means())).counted_by_main()
                pending.add(measured)
                found = evaluated(step) if is_due(step, config.train.eval_every, num_steps) else {}
                keeper.after_update(step, found, save)
                if found or keeper.reason is not None or is_due(step, config.log.every, num_steps):
                    row = {"epoch": method.train.epoch(step), **method.row(pending.take()), "lr": learning_rate}
                    log.write(step, {**row, **nonfinite.metrics(), **found})
                with method.timer.part("save"):
                    checkpoints.save_if_due(step, is_last=step == num_steps or keeper.reason is not None)
    keeper.leave(files.model, save)
    if method.alarm is not None:
        method.alarm.say_summary(files.checkpoints)
    return keeper.reason


def restored(checkpoints: Checkpoints, files: RunFolder) -> int:
    """How many steps are taken. Of a run that begins anew what an earlier course has kept goes: that one had no
    checkpoint, or none from which this one goes on."""
    done = checkpoints.restore()
    if done == 0:
        Kept(files.best).forget()
    return done


def is_due(step: int, every: int, num_steps: int) -> bool:
    """Every `every` steps (0: never) and after the last."""
    return step == num_steps or (every > 0 and step % every == 0)


def say_beginning(train: Batches, config: TrainingConfig, num_steps: int) -> None:
    """What there is to say before the first step."""
    say_rows(train, num_steps)
    warn_of_rates(config, num_steps)
    warn_of_no_evaluation(config)
    warn_of_no_checkpoints(config)


def say_rows(train: Batches, num_steps: int) -> None:
    """Of each of several sources its rows, its share of a step, and how often the run goes through them; and where a
    step asks for more rows than there are, that it has some more than once."""
    rows, size = len(train.examples), train.packer.config.size
    if num_steps > 0 and size > rows:
        say(f"WARNING: batch.size={size} is more than the {rows} rows of data.train: a step has some more than once")
    drawn = train.order.counts(num_steps * size)
    for portion, count in zip(train.portions, drawn, strict=False):
        what = f"{portion.rows} rows, {portion.share:.1%} of each step, {count / portion.rows:.3g} passes in the run"
        say(f"data.train.mix.{portion.name}: {what}")


def warn_of_no_evaluation(config: TrainingConfig) -> None:
    """Warns where evaluations are asked for and there are no rows for them."""
    every = config.train.eval_every
    if every > 0 and not has_rows(config.data, "eval"):
        say(f"WARNING: train.eval_every={every} evaluates nothing, for there are no held-out rows (data.eval)")


def warn_of_no_checkpoints(config: TrainingConfig) -> None:
    """Says where a run cannot be saved before its end."""
    if config.distributed.offload_optimizer is Offload.nvme:
        say("WARNING: no checkpoints with distributed.offload_optimizer=nvme: a run that is interrupted starts over")


def warn_of_rates(config: TrainingConfig, num_steps: int) -> None:
    """Warns of a warm-up that a run is too short for: the learning rate is 0 in each of its steps, never gets to what
    was asked for, or is 0 in a good part of the steps, for a warm-up begins with a step of rate 0."""
    train, steps = config.train, config.optimizer_steps(num_steps)
    rises, factor = warmup(train, steps), lr_factor(train, steps)
    key = f"train.warmup_steps={rises}" if train.warmup_steps else f"train.warmup_ratio={train.warmup_ratio:g}"
    if steps <= 0:
        return  # an evaluation alone
    if not any(factor(step) for step in range(steps)):
        way = "a warm-up (train.warmup_steps, train.warmup_ratio) begins with such a one: take more steps"
        say(f"WARNING: nothing will be learned, for the learning rate is 0 in all steps of the run ({steps}); {way}")
    elif rises >= steps:
        least = f"never reaches train.learning_rate={train.learning_rate:g}: take more steps, or a shorter warm-up"
        say(f"WARNING: the warm-up ({key}) is as long as the run's {steps} steps or longer; the learning rate {least}")
    elif rises > 0 and steps <= FEW_STEPS:
        way = "train.warmup_steps=0 train.warmup_ratio=0 leaves the warm-up out"
        say(f"WARNING: the first of the run's {steps} steps learns nothing: a warm-up ({key}) begins at rate 0; {way}")

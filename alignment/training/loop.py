"""The loop of SFT, reward models, DPO, ORPO, SimPO and CPO: steps, evaluations, log, checkpoints."""

from functools import partial
from pathlib import Path

from alignment.config.run import TrainingConfig
from alignment.data.batches import Batches
from alignment.distributed.engine import Engine
from alignment.distributed.world import at_step
from alignment.training.checkpoint import Checkpoints, Stateful
from alignment.training.log import MetricsLog
from alignment.training.nonfinite import NonFinite
from alignment.training.objectives import Objective
from alignment.training.step import Pending, evaluate_step, to_floats, train_step
from alignment.training.watch import Watch, step_flops


def fit(
    engine: Engine,
    objective: Objective,
    evaluation: Objective,
    *,
    train: Batches,
    held_out: Batches | None,
    config: TrainingConfig,
    folder: Path,
) -> None:
    """Train for the configured steps, from the newest checkpoint on.

    `evaluation` is the objective on `held_out` (DPO's has a reference table of its own); its metrics are logged as
    `eval/*` every `train.eval_every` steps and after the last.
    """
    num_steps = train.num_steps(config.train)
    nonfinite = NonFinite(folder, config.train.on_nonfinite, train)
    pending = Pending()
    parts: dict[str, Stateful] = {"model": engine, "pending": pending, "nonfinite": nonfinite}
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint, parts, zero=config.distributed.zero)
    done = checkpoints.restore()
    watch = Watch(engine.device, step_flops(engine.num_weights, engine.num_trained))
    with MetricsLog(folder, config, watch, num_steps=num_steps, done=done) as log:
        for step in range(done + 1, num_steps + 1):
            with at_step(step):
                learning_rate = engine.learning_rate()
                with watch.part("data"):
                    micro_batches = train.step(step - 1)
                    watch.count(micro_batches)
                with watch.part("learn"):
                    pending.add(train_step(engine, objective, micro_batches, partial(nonfinite.meet, step)))
                evaluated: dict[str, float] = {}
                if held_out is not None and is_due(step, config.train.eval_every, num_steps):
                    with watch.part("eval"):
                        metrics = to_floats(evaluate_step(engine, evaluation, held_out.once(), held_out.spare()))
                    evaluated = {f"eval/{name}": value for name, value in metrics.items()}
                if evaluated or is_due(step, config.log.every, num_steps):
                    log.write(step, {**pending.take(), "lr": learning_rate, **nonfinite.metrics(), **evaluated})
                with watch.part("save"):
                    checkpoints.save_if_due(step)


def is_due(step: int, every: int, num_steps: int) -> bool:
    """Every `every` steps (0: never) and after the last."""
    return step == num_steps or (every > 0 and step % every == 0)

"""Several processes and one: the same first step, measured in processes that are started for it.

Each process runs this module: `python -m alignment.check.ranks FOLDER` reads the config there, and the main one leaves
what it measured beside it.
"""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from alignment.check.agreement import GRADIENT_TOLERANCE
from alignment.check.experience import actor_objective, experienced
from alignment.check.subject import FEW, NEEDS, few, in_one_process, subject_of
from alignment.check.verdict import Verdict, graded
from alignment.config.cluster import ClusterConfig
from alignment.config.errors import UserError
from alignment.config.launch import LaunchConfig
from alignment.config.run import TrainingConfig
from alignment.config.tasks import PPOConfig
from alignment.config.vocabulary import Grade
from alignment.distributed import world
from alignment.distributed.device import tell_deepspeed
from alignment.distributed.launch import is_told, launch, tell_launcher
from alignment.distributed.precision import precision_of
from alignment.process import belong_to_launcher, end
from alignment.rollout.samples import Samples
from alignment.tasks.ppo import set_up
from alignment.terminal import quiet
from alignment.training.checkpoint import seed_everything
from alignment.training.step import to_floats, train_step

CONFIG, MEASURED = "config.pickle", "measured.json"
USER_ERROR = 2


def processes_agree(config: TrainingConfig) -> Verdict:
    """That the first step of the processes that the config asks for is that of one: loss and norm of the gradient.

    Proves that rows are dealt out once each, that sums cross the ranks once, and that sharded weights are whole where
    they are used.
    """
    count = config.launch.processes if config.launch.processes > 1 else min(2, config.processes())
    name = f"{count} processes == one"
    device = world.pick_device(config.distributed.device)
    if device.type != "cpu" and torch.accelerator.device_count() < count:
        return Verdict(
            name, Grade.warn, f"not measured: it takes {count} devices, {torch.accelerator.device_count()} here"
        )
    config = replace(few(config, -(-FEW // count) * count), cluster=ClusterConfig(), launch=LaunchConfig(count))
    with quiet():  # what there is to say of rows and roles has been said
        alone = first_step(in_one_process(config))
    with TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_bytes(pickle.dumps(config))
        launch(["-m", "alignment.check.ranks", folder], count)
        together: dict[str, float] = json.loads((Path(folder) / MEASURED).read_text())
    tolerance = GRADIENT_TOLERANCE[precision_of(config.distributed)]
    pairs = {key: (together[key], alone[key]) for key in ("loss", "grad_norm")}
    same = all(abs(one - other) <= tolerance * max(1.0, abs(other)) for one, other in pairs.values())
    figure = ", ".join(f"{key} {one:.6g} and {other:.6g}" for key, (one, other) in pairs.items())
    zero = f"distributed.zero={config.distributed.zero}, {config.batch.size} rows"
    return Verdict(name, graded(same), f"{figure} ({zero}, at most {tolerance:g} apart)")


def first_step(config: TrainingConfig) -> dict[str, float]:
    """The metrics of the first step, by all processes of this run together."""
    seed_everything(config.seed)
    if isinstance(config, PPOConfig):
        with TemporaryDirectory() as folder:
            stage = set_up(config, Path(folder))
            rows = stage.train.step_rows(0)
            samples: Samples = stage.rollouts.draw(stage.rollouts.prompts.train, rows, stage.rollouts.seed(1), 1)
            micro_batches, _ = experienced(stage, samples, stage.config.batch.max_tokens)
            return to_floats(train_step(stage.roles.actor, actor_objective(stage), micro_batches))
    subject = subject_of(config, NEEDS[type(config)])
    engine = subject.engine()
    return to_floats(train_step(engine, subject.objective(engine), subject.batches.step(0)))


def main(folder: Path) -> None:
    """One of the processes."""
    belong_to_launcher()
    tell_launcher()
    config: TrainingConfig = pickle.loads((folder / CONFIG).read_bytes())
    tell_deepspeed(world.pick_device(config.distributed.device))
    try:
        world.init(config.distributed)
        with quiet():
            measured = first_step(config)
    except UserError as error:
        if is_told(error, is_user_error=True):
            end(USER_ERROR)
        raise
    if world.is_main():
        (folder / MEASURED).write_text(json.dumps(measured))
    world.barrier()
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Several processes and one: the same first step, measured in processes that are started for it.

They are given the config as a run's are, as a recipe: `alignment check FOLDER/config.yaml`, which in a process of our
launcher takes part in the measurement. What the main one measured lies in the folder then.
"""

import json
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from alignment import preempt
from alignment.check.agreement import GRADIENT_TOLERANCE
from alignment.check.experience import experienced, objectives_of
from alignment.check.subject import FEW, few, in_one_process, settle, subject_of
from alignment.check.verdict import Grade, Verdict, graded
from alignment.config.cluster import ClusterConfig
from alignment.config.launch import LaunchConfig
from alignment.config.online import OnlineConfig, PPOConfig
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import task_name
from alignment.distributed import collectives
from alignment.distributed.launch import RankFailedError, launch, tell_launcher
from alignment.distributed.precision import precision_of
from alignment.generation.generate import Reply
from alignment.generation.samples import Samples
from alignment.runs.folder import RunFolder
from alignment.runs.lifecycle import as_recipe
from alignment.tasks.ppo import PPOTrainer
from alignment.tasks.run import task_module
from alignment.terminal import quiet, say
from alignment.training.generators import seed_everything
from alignment.training.step import taken_step

MEASURED, REPLIES = "measured.json", "replies.json"
LEAST = 1e-6  # a gradient that is smaller is compared with this size
Replies = list[list[dict[str, Any]]]
"""Of each prompt: their token ids, whether they are finished, and their texts."""


@dataclass(frozen=True, slots=True)
class FirstStep:
    """What processes measure together."""

    numbers: dict[str, float]
    """Losses, and the norms of gradients, before the first step."""
    replies: Replies
    """Drawn from PPO's policy; none of a task that draws none."""


def processes_agree(config: TrainingConfig) -> Verdict:
    """That the first step of the processes that the config asks for is that of one: losses and norms of the gradients.

    Proves that rows are dealt out once each, that sums cross the ranks once, and that sharded weights are whole where
    they are used. PPO's processes draw replies of their own, of which some may differ by a rounding, and learn from
    those of one process.
    """
    least = max(2, config.distributed.sequence_parallel)
    count = config.launch.processes if config.launch.processes > 1 else min(least, config.processes())
    name = f"{count} processes == one"
    if isinstance(config, OnlineConfig) and not isinstance(config, PPOConfig):
        return Verdict(name, Grade.warn, f"not measured of {task_name(config)}, which learns from what it draws")
    device = collectives.pick_device(config.distributed.device)
    if device.type != "cpu" and torch.accelerator.device_count() < count:
        lacking = f"not measured: it takes {count} devices, {torch.accelerator.device_count()} here"
        return Verdict(name, Grade.warn, lacking)
    config = replace(few(config, -(-FEW // count) * count), cluster=ClusterConfig(), launch=LaunchConfig(count))
    with TemporaryDirectory() as folder:
        with quiet():  # what there is to say of rows and roles has been said
            alone = first_step(in_one_process(config), None)
        config, recipe = replace(config, output_dir=folder), RunFolder(folder).config
        recipe.write_text(as_recipe(config))
        (Path(folder) / REPLIES).write_text(json.dumps(alone.replies))
        try:
            launch(["-m", "alignment", "check", str(recipe)], count)
        except RankFailedError as error:
            say(str(error))
            return Verdict(name, Grade.fail, f"the processes failed, {str(error).splitlines()[-1]}")
        together = FirstStep(**json.loads((Path(folder) / MEASURED).read_text()))
    tolerance = GRADIENT_TOLERANCE[precision_of(config.distributed)]
    pairs = {key: (together.numbers[key], each) for key, each in alone.numbers.items()}
    same = all(abs(one - other) <= tolerance * _size(key, other) for key, (one, other) in pairs.items())
    figure = ", ".join(f"{key} {one:.6g} and {other:.6g}" for key, (one, other) in pairs.items())
    figure += f" (distributed.zero={config.distributed.zero}, the {config.batch.size} shortest rows, "
    figure += f"at most {tolerance:g} apart)"
    if alone.replies:
        alike = sum(one == other for one, other in zip(together.replies, alone.replies, strict=True))
        figure += f"; {alike} of {len(alone.replies)} drawn replies are the same"
        same = same and alike > 0
    return Verdict(name, graded(same), figure)


def _size(key: str, number: float) -> float:
    """What a difference is measured by: a loss may be zero, a gradient's norm is compared with itself."""
    return max(abs(number), LEAST if "grad_norm" in key else 1.0)


def take_part(config: RunConfig) -> None:
    """As one of the processes: the first step, whose figures the main one leaves in `output_dir`.

    Raises:
        Preempted: the processes were asked to stop.
    """
    assert isinstance(config, TrainingConfig)
    tell_launcher()
    settle(config)
    collectives.init(config.distributed)
    folder = Path(config.output_dir)
    with quiet():
        step = first_step(config, json.loads((folder / REPLIES).read_text()))
    if preempt.requested():
        raise preempt.Preempted(preempt.reason())
    if collectives.is_main():
        (folder / MEASURED).write_text(json.dumps({"numbers": step.numbers, "replies": step.replies}))
    collectives.barrier()
    collectives.leave()


def first_step(config: TrainingConfig, given: Replies | None) -> FirstStep:
    """The first step, by all processes of this run together. `given`: what PPO learns from; None: what it draws."""
    seed_everything(config.seed)
    if isinstance(config, PPOConfig):
        return _ppo_step(config, given)
    subject = subject_of(config)
    engine = subject.engine()
    measured = taken_step(engine, subject.objective(engine), subject.batches.step(0)).means()
    return FirstStep({key: measured[key] for key in ("loss", "grad_norm")}, [])


def _ppo_step(config: PPOConfig, given: Replies | None) -> FirstStep:
    with TemporaryDirectory() as folder:
        trainer: PPOTrainer = vars(task_module(config))["build_trainer"](config, Path(folder))
        data = trainer.rollouts.prompts.train
        lengths = [len(example.prompt_ids) for example in data.examples]
        shortest = sorted(range(len(lengths)), key=lambda row: lengths[row])
        rows = list(islice(cycle(shortest), config.batch.size))
        drawn = trainer.rollouts.draw(data, rows, trainer.rollouts.seed(1), config.num_samples)
        samples = drawn if given is None else _with_replies(drawn, given)
        micro_batches, _ = experienced(trainer, samples, trainer.config.batch.budget)
        policy, critic = objectives_of(trainer)
        measured = {"policy": taken_step(trainer.roles.actor, policy, micro_batches).means()}
        if trainer.roles.critic is not None:
            measured["critic"] = taken_step(trainer.roles.critic, critic, micro_batches).means()
    numbers = {f"{role}'s {key}": each[key] for role, each in measured.items() for key in ("loss", "grad_norm")}
    replies = [[{**asdict(reply), "ids": reply.ids.tolist()} for reply in row] for row in drawn.replies]
    return FirstStep(numbers, replies)


def _with_replies(samples: Samples, given: Replies) -> Samples:
    """The same prompts with other replies."""
    replies = [[Reply(**{**one, "ids": np.array(one["ids"], dtype=np.int32)}) for one in row] for row in given]
    examples = [
        replace(example, completion_ids=tuple(r.ids for r in row), finished=tuple(r.finished for r in row))
        for example, row in zip(samples.examples, replies, strict=True)
    ]
    return Samples(samples.records, examples, replies)

"""`batch.max_tokens` where the config leaves it to the run: as many tokens as the memory has room for that is free when
the run begins, before any of its models is there. A run that goes on keeps the number that it began with."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from alignment.config.errors import UserError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.online import OnlineConfig, OnlineDPOConfig, PPOConfig
from alignment.config.ppo import Share
from alignment.config.reward import ScorerConfig
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.soft_prompt import SoftPromptConfig
from alignment.config.supervised import ReferencedConfig, ScalarConfig
from alignment.config.tasks import RejectionConfig
from alignment.distributed import collectives
from alignment.distributed.device import free_memory
from alignment.models.files import one_line
from alignment.models.footprint import Footprint, Role, footprint_of
from alignment.runs.folder import RunFolder
from alignment.runs.lifecycle import BATCHED, as_begun
from alignment.tasks.compared import model_config
from alignment.tasks.rows import rows_of, whole_step
from alignment.terminal import say

SHARE = 0.8  # of what is free; the rest is for kernels' own needs, fragments, and what else is at work on the machine
LEAST, MOST_CPU, MOST_GPU = 1024, 8192, 16384
UNKNOWN = 8192  # of a model that cannot be counted
KEY = "batch.max_tokens"
WAY = f"{KEY}=N sets another"
UNCOUNTED = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError)
"""What an architecture's code raises where it asks for numbers that are not there."""

Run = TypeVar("Run", bound=RunConfig)


@dataclass(frozen=True, slots=True)
class Room:
    """What a process may take."""

    free: int
    """Bytes."""
    processes: int
    """Of the run, among which ZeRO shares what it shares."""
    where: str
    is_gpu: bool


def with_max_tokens(config: Run) -> Run:
    """The config with its `batch.max_tokens` for a run in these processes, which choose it together and say so."""
    free = free_memory(device := collectives.pick_device(config.distributed.device))
    found = collectives.gathered((socket.gethostname(), free))
    here = [host for host, _ in found]
    least = min(free if device.type == "cuda" else free // here.count(host) for host, free in found)
    return _chosen(config, Room(least, len(found), *_place(device.type, max(map(here.count, here)))))


def with_max_tokens_of(config: Run, processes: int) -> Run:
    """The same for a run in so many processes, of which this is none."""
    device = collectives.pick_device(config.distributed.device)
    local = min(processes, max(config.launch.processes, config.cluster.num_tasks_per_node()))
    free = free_memory(device) // (1 if device.type == "cuda" else local)
    return _chosen(config, Room(free, processes, *_place(device.type, local)))


def _place(device: str, local: int) -> tuple[str, bool]:
    if device == "cuda":
        return "on the GPU", True
    return ("for each of the processes here" if local > 1 else "on this machine"), False


def _chosen(config: Run, room: Room) -> Run:
    if not isinstance(config, BATCHED) or config.batch.max_tokens is not None:
        return config
    if collectives.is_main():
        kept = as_begun(RunFolder(config.output_dir), config)
        if kept.batch.max_tokens is not None:
            say(f"{KEY}: {kept.batch.max_tokens}, as the run in {config.output_dir} began; {WAY}")
            number = kept.batch.max_tokens
        else:
            number = _choose(config, room)
    else:
        number = 0
    return replace(config, batch=replace(config.batch, max_tokens=collectives.from_main(number)))


def _choose(config: TrainingConfig | RejectionConfig | EvaluateConfig, room: Room) -> int:
    """And say what it is chosen from."""
    rows = rows_of(config)
    longest, whole = max(each.longest for each in rows), whole_step(config)
    widest = max(rows, key=lambda each: each.together)
    footprints = {}
    for role in roles_of(config):
        own = [widest]
        if isinstance(config, PPOConfig):  # whose policy alone reads PPO-ptx's texts, in passes of their own
            own = rows if role.is_trained and not role.is_scalar else rows[:1]
        try:
            found = [
                footprint_of(role, each, config.distributed, room.processes, layout=config.batch.layout) for each in own
            ]
            footprints[role.key] = max(found, key=lambda each: each.of(MOST_CPU))
        except UNCOUNTED as error:
            number = max(UNKNOWN, longest) if whole is None else whole
            why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
            say(f"{KEY}: {number}, without a look at the memory: that of {role.key} cannot be counted ({why}); {WAY}")
            return number
    at_work = {key: replace(each, held=_held(config, footprints, key)) for key, each in footprints.items()}
    busiest = max(at_work, key=lambda key: at_work[key].of(MOST_CPU))
    one = at_work[busiest]
    number = max(fitting(one, room), longest) if whole is None else whole
    models = "weights" if len(footprints) == 1 else f"the weights of {len(footprints)} models"
    why = "the upper limit of the automatic choice" if number >= most(room) else "as many as there is room for"
    why = why if whole is None else "all of a step of the longest rows"
    line = f"{KEY}: {number} tokens in one pass, {why}; {_gib(room.free)} are free {room.where}, of which {models}"
    line += ", gradients and optimizer" if isinstance(config, TrainingConfig) else ""
    line += " (the reference's log-probs come first, it is not held)" if isinstance(config, ReferencedConfig) else ""
    line += f" take about {_gib(one.held)} and each token {_mib(one.per_token)}"
    line += f" (in {_whose(config, busiest)}, the most)" if len(footprints) > 1 else ""
    say(f"{line}; {WAY}")
    needs = one.of(max(number, widest.together))
    if needs > SHARE * room.free:
        what = f"the longest rows that the limits admit, of {widest.together} tokens," if number <= longest else "this"
        ways = "shorter rows (max_length, max_new_tokens) or model.gradient_checkpointing=true take less"
        say(f"WARNING: {KEY}: {what} may not fit, for about {_gib(needs)}; {ways}")
    return number


def _whose(config: RunConfig, key: str) -> str:
    """A model by its key, and one of an evaluation by what the user has called it."""
    return config.runs[key.removeprefix("runs.")] if isinstance(config, EvaluateConfig) and "." in key else key


def fitting(footprint: Footprint, room: Room) -> int:
    """The highest power of two that fits, from `LEAST` to what the device still gains by: memory that differs by little
    from run to run leaves the number as it is."""
    number = most(room)
    while number > LEAST and footprint.of(number) > SHARE * room.free:
        number //= 2
    return number


def most(room: Room) -> int:
    return MOST_GPU if room.is_gpu else MOST_CPU


def _held(config: RunConfig, footprints: dict[str, Footprint], busy: str) -> float:
    """What is there while that model is at work: the gradients of no other, for models learn one after the other; of an
    evaluation's models the baseline and one other; and a reference whose log-probs are kept before the policy is."""
    sizes = {key: each.held - each.gradients * (key != busy) for key, each in footprints.items()}
    if isinstance(config, ReferencedConfig):
        return sizes[busy]
    if not isinstance(config, EvaluateConfig):
        return sum(sizes.values())
    runs = sorted((size for key, size in sizes.items() if key.startswith("runs.")), reverse=True)
    return sum(runs[:2]) + sum(size for key, size in sizes.items() if not key.startswith("runs."))


def roles_of(config: TrainingConfig | RejectionConfig | EvaluateConfig) -> Iterator[Role]:
    """The models of the run."""
    if isinstance(config, EvaluateConfig):
        trusted = config.trust_remote_code
        for name, path in config.runs.items():
            yield Role(f"runs.{name}", model_config(path, trusted=trusted))
        if config.reward is not None:
            yield Role("reward", ModelConfig(path=config.reward, trust_remote_code=trusted), is_scalar=True)
        return
    if isinstance(config, RejectionConfig):
        yield Role(_key_of(config.model), config.model)
        yield from _scorers(config.reward, config.model)
        return
    is_in_ppo, is_scalar = isinstance(config, PPOConfig), isinstance(config, ScalarConfig)
    averages = isinstance(config, PPOConfig) and config.ppo.ema is not None
    has_other = isinstance(config, ReferencedConfig | OnlineDPOConfig) and config.reference.path is not None
    is_beside = isinstance(config, OnlineDPOConfig | PPOConfig) and not has_other  # the reference, all the time
    lora = config.model.lora
    trained = config.model.adapter is not None or bool(lora.modules_to_save) or lora.init.adds_at_first
    copies = int(averages) + (is_beside and trained and config.model.keeps_base)  # of what it trains, as it was
    yield Role(_key_of(config.model), config.model, is_scalar, True, config.train, is_in_ppo, copies)
    if isinstance(config, ReferencedConfig | OnlineDPOConfig) and config.reference.path is not None:
        yield Role("reference.path", replace(_frozen(config.model), path=config.reference.path))
    elif is_beside and not config.model.keeps_base:
        yield Role("reference", _frozen(config.model))
    if isinstance(config, OnlineConfig):
        yield from _judges(config)


def _judges(config: OnlineConfig) -> Iterator[Role]:
    """What scores replies, and PPO's critic; on one backbone they are a few weights more."""
    if isinstance(config, PPOConfig):
        if config.roles.share is Share.lora:
            return
        if config.advantage.has_critic:
            yield Role("critic", _critic(config), is_scalar=True, is_trained=True, train=config.train, is_in_ppo=True)
    yield from _scorers(config.reward, config.model)
    if config.gold_model is not None:
        settings = ModelConfig(path=config.gold_model, trust_remote_code=config.model.trust_remote_code)
        yield Role("gold_model", settings, is_scalar=True)


def _critic(config: PPOConfig) -> ModelConfig:
    """As it begins: as the folder that is named, a reward model, or the policy's body."""
    models = [one.path for one in config.reward.by_key().values() if one.path is not None]
    path = config.critic.path or next(iter(models), None) or config.model.path
    model: ModelConfig = replace(config.model, lora=replace(config.model.lora, modules_to_save=[]))
    if path is None:
        return replace(model, lora=LoraConfig())
    return model if path == model.path else replace(model, path=path, adapter=None)


def _scorers(reward: ScorerConfig, model: ModelConfig) -> Iterator[Role]:
    for key, one in reward.by_key().items():
        if one.path is not None:
            settings = ModelConfig(path=one.path, trust_remote_code=model.trust_remote_code)
            yield Role(f"{key}.path", settings, is_scalar=True)


def _frozen(model: ModelConfig) -> ModelConfig:
    return replace(model, lora=LoraConfig(), soft_prompt=SoftPromptConfig(), adapter=None, gradient_checkpointing=False)


def _key_of(model: ModelConfig) -> str:
    return "model.init" if model.path is None else "model.path"


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 / 10 else _mib(size)


def _mib(size: float) -> str:
    return f"{size / 2**20:.2g} MiB"

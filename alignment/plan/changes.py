"""What a config can say otherwise so that a run takes less memory, and what each of these costs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import product
from typing import Any

from alignment.config.distributed import Device, Offload, Precision
from alignment.config.fp8 import Fp8
from alignment.config.generation import Gather, Generation
from alignment.config.model import Quantization
from alignment.config.online import OnlineConfig, PPOConfig
from alignment.config.optimizer import OptimizerName
from alignment.config.ppo import Share
from alignment.config.run import TrainingConfig
from alignment.config.tasks import RejectionConfig
from alignment.plan.hardware import Hardware
from alignment.plan.roles import Planned, widest_rows
from alignment.tasks.max_tokens import LEAST

OF_PASSES = (
    *("batch.max_tokens", "model.gradient_checkpointing", "model.activation_offloading", "distributed.device"),
    *("distributed.sequence_parallel", "generation.batch_size", "generation.gather"),
)
"""Keys by which what is held is the same, whatever they say."""
ANOTHER_METHOD = 100.0
RANK = 16  # of an adapter that is proposed, as conf/model/pretrained_lora.yaml has it


@dataclass(frozen=True, slots=True)
class Change:
    """Keys with other values, and what they cost beside memory."""

    keys: dict[str, Any]
    cost: str
    weight: float
    """By which changes are ordered: about the share of a step's time that it adds; of another method more than all
    that do not change it come to together."""


NOTHING = Change({}, "", 0.0)


def combinations(config: Planned, hardware: Hardware) -> list[tuple[Change, ...]]:
    """Changes that go together, from the cheapest to the dearest, nothing first."""
    axes = [
        _checkpointing(config, hardware),
        _precision(config, hardware),
        _fp8(config),
        _sharding(config, hardware),
        _max_tokens(config),
        _shared_rows(config, hardware),
        _replies(config),
        _roles(config, hardware),
        _optimizer(config),
        _adapters(config),
    ]
    found = [tuple(change for change in each if change.keys) for each in product(*axes)]
    return sorted(found, key=lambda each: (sum(change.weight for change in each), len(each)))


def changed(config: Any, keys: dict[str, Any]) -> Any:
    """The config with other values under its dotted keys.

    Raises:
        ConfigError: they break a rule.
    """
    own = {key: value for key, value in keys.items() if "." not in key}
    for part in {key.partition(".")[0] for key in keys if "." in key}:
        inner = {key.partition(".")[2]: value for key, value in keys.items() if key.startswith(f"{part}.")}
        own[part] = changed(getattr(config, part), inner)
    return replace(config, **own)


def _checkpointing(config: Planned, hardware: Hardware) -> list[Change]:
    """And what is still kept under it on the CPU; of all that is kept without it the bus would be full."""
    again: dict[str, Any] = {"model.gradient_checkpointing": True}
    cost = "a third more to compute, for each forward is run again in the backward pass"
    moved: dict[str, Any] = {"model.activation_offloading": True}
    if config.distributed.device is not Device.cuda:
        moved |= {"distributed.device": Device.cuda}
    way = "the inputs of layers over the CPU's bus twice for each pass"
    is_on = config.model.gradient_checkpointing
    found = [NOTHING] if is_on else [NOTHING, Change(again, cost, 0.33)]
    if hardware.is_gpu and not config.model.activation_offloading:
        found.append(Change(moved, way, 0.3) if is_on else Change(again | moved, f"{cost}; {way}", 0.63))
    return found


def _precision(config: Planned, hardware: Hardware) -> list[Change]:
    if not hardware.is_gpu:
        return [NOTHING]
    if config.distributed.precision is Precision.float32:
        cost = "products in bfloat16: other last bits, and several times as fast"
        return [NOTHING, Change({"distributed.precision": Precision.bfloat16}, cost, 0.01)]
    copies = f"copies of all weights in {config.distributed.precision.value}"
    cost = f"products in TF32, without {copies} while a pass runs: several times as slow"
    return [NOTHING, Change({"distributed.precision": Precision.float32}, cost, 2.0)]


def _fp8(config: Planned) -> list[Change]:
    """Without, for what does not go with it: ZeRO 3, adapters."""
    if config.model.fp8 is Fp8.none:
        return [NOTHING]
    cost = "products in bfloat16, of which a card has half as many a second at best"
    return [NOTHING, Change({"model.fp8": Fp8.none}, cost, 0.5)]


def _sharding(config: Planned, hardware: Hardware) -> list[Change]:
    """Stages above the present one, and what may wait in the memory of the CPU under each."""
    now, several = config.distributed.zero or 0, hardware.processes > 1
    found = [NOTHING]
    stages = {
        1: (0.05, "the weights twice over the network for each step"),
        2: (0.1, "the weights over the network for each step, and once more for each pass"),
        3: (0.2, "the weights three times over the network for each pass"),
    }
    for stage, (weight, cost) in stages.items():
        more = {"distributed.zero": stage} if stage != now or config.distributed.zero is None else {}
        if stage < now or (more and not several and stage == 2):
            continue
        if more and several:
            found.append(Change(more, cost, weight))
        if not hardware.is_gpu or config.distributed.offload_optimizer is not Offload.none:
            continue
        moved = more | {"distributed.offload_optimizer": Offload.cpu}
        cost = f"{cost}; " if several and more else ""
        cost += "the optimizer on the CPU, gradients and weights over its bus for each step"
        weight = (weight if more else 0.0) + 1.0
        if stage < 3:
            found.append(Change(moved, cost, weight))
        else:
            cost += ", weights for each pass"
            found.append(Change(moved | {"distributed.offload_param": Offload.cpu}, cost, weight + 1.0))
    return found


def _max_tokens(config: Planned) -> list[Change]:
    number, found = config.batch.max_tokens, [NOTHING]
    halvings = 0
    while number is not None and number // 2 >= LEAST:
        number, halvings = number // 2, halvings + 1
        cost = f"passes of 1/{2**halvings} the size: more of them, and the same gradient"
        found.append(Change({"batch.max_tokens": number}, cost, 0.04 * halvings))
    return found


def _shared_rows(config: Planned, hardware: Hardware) -> list[Change]:
    """Of rows that no smaller pass makes shorter. Processes of one machine share them, and each has `LEAST` tokens."""
    if not config.shares_rows or config.distributed.sequence_parallel > 1:
        return [NOTHING]
    found, number, longest = [NOTHING], 2, widest_rows(config).together
    while number <= min(hardware.local, longest // LEAST) and hardware.processes % number == 0:
        cost = f"each row on {number} processes, which send each other queries, keys, values and outputs in each layer"
        found.append(Change({"distributed.sequence_parallel": number}, cost, 0.05 * number))
        number *= 2
    return found


def _replies(config: Planned) -> list[Change]:
    if not isinstance(config, OnlineConfig | RejectionConfig) or config.generation.engine is Generation.vllm:
        return [NOTHING]
    found, number = [NOTHING], config.generation.batch_size
    for share in (4, 16, 64):
        if number // share >= 1:
            cost = f"replies are drawn {number // share} at a time: up to {share} times as long"
            found.append(Change({"generation.batch_size": number // share}, cost, 0.02 * share))
    if config.generation.gather is Gather.model:  # which ZeRO 3 alone takes
        cost = "the weights over the network for every token that is drawn"
        found.append(Change({"generation.gather": Gather.layer}, cost, 3.0))
        for share, weight in ((4, 6.0), (16, 9.0), (64, 12.0)):
            together = {"generation.gather": Gather.layer, "generation.batch_size": max(1, number // share)}
            found.append(Change(together, f"{cost}, {max(1, number // share)} replies at a time", weight))
    return found


def _roles(config: Planned, hardware: Hardware) -> list[Change]:
    if not isinstance(config, PPOConfig) or not hardware.is_gpu or config.roles.offload:
        return [NOTHING]
    if config.roles.share is not Share.none:
        return [NOTHING]
    cost = "the frozen roles cross the CPU's bus twice for each iteration"
    return [NOTHING, Change({"roles.offload": True}, cost, 0.1)]


def _optimizer(config: Planned) -> list[Change]:
    """Others that take AdamW's rates."""
    if not isinstance(config, TrainingConfig) or config.train.optimizer is not OptimizerName.adamw:
        return [NOTHING]
    key = "train.optimizer"
    blocks = "AdamW's states in 8 bits, which rounds its updates (extra: quantization)"
    rows = "no mean of the gradients, and their squares by row and column: noisier steps"
    return [
        NOTHING,
        Change({key: OptimizerName.adamw_8bit}, blocks, 0.5),
        Change({key: OptimizerName.adafactor}, rows, 5.0),
    ]


def _adapters(config: Planned) -> list[Change]:
    if isinstance(config, RejectionConfig):
        return [NOTHING]
    four_bits = {"model.quantization": Quantization.nf4}
    rounded = "the base rounded to 4 bits beneath the adapters, and unpacked for each product"
    packed = [] if config.model.path is None or config.model.is_packed else [four_bits]
    if config.model.has_adapter:
        return [NOTHING, *(Change(keys, rounded, ANOTHER_METHOD) for keys in packed)]
    cost = "adapters learn in place of all weights: another method, with a rate about ten times as high"
    ways: list[tuple[dict[str, Any], str, float]] = [({"model.lora.rank": RANK}, cost, ANOTHER_METHOD)]
    if isinstance(config, PPOConfig) and not config.reward.models and not config.reward.normalize:
        keys = {"model.lora.rank": RANK, "roles.share": Share.lora}
        ways.append((keys, f"{cost}, and all roles are adapters on one backbone", ANOTHER_METHOD + 1.0))
    ways += [(keys | more, f"{cost}; {rounded}", weight + 10.0) for keys, cost, weight in ways for more in packed]
    return [NOTHING, *(Change(*way) for way in ways)]


def words(changes: tuple[Change, ...]) -> Iterator[str]:
    """Overrides, as they are typed."""
    for change in changes:
        for key, value in change.keys.items():
            yield f"{key}={_typed(value)}"


def _typed(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)

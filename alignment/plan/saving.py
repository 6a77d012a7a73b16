"""The bytes of a model as it is saved, and of what is made of its weights for that."""

import torch

from alignment.config.run import TrainingConfig
from alignment.models.footprint import config_and_trust
from alignment.plan.buffers import FLOAT, NARROW, made_whole
from alignment.plan.roles import Planned, PlannedRole


def saved(policy: PlannedRole) -> tuple[float, float]:
    """Of all its weights, an adapter merged into them; and of the adapter, or the soft prompt, by itself. In the dtype
    that the weights came in, a soft prompt in float32."""
    settings, counted, itemsize = policy.role.settings, policy.counted, _itemsize(policy)
    if settings.has_soft_prompt:
        return 0.0, float(counted.num_trained * FLOAT)
    whole = float(_number(policy) * itemsize)
    if not settings.has_adapter or not settings.keeps_base:
        return whole, 0.0
    return whole * settings.lora.merge, float(counted.num_in_adapter * itemsize)


def in_checkpoint(config: Planned, roles: list[PlannedRole], processes: int) -> float:
    """Of the weights that train and their optimizers' states, what each process writes: its share, or without ZeRO all
    of it."""
    if not isinstance(config, TrainingConfig):
        return 0.0
    trained = [each.counted for each in roles if each.role.is_trained]
    states = sum(counted.num_trained * FLOAT + counted.states.kept for counted in trained)
    return states / (processes if config.distributed.zero else 1)


def copied(config: Planned, roles: list[PlannedRole], processes: int, device: str) -> float:
    """What each process keeps of that in CPU memory while training goes on, until it is written."""
    if not isinstance(config, TrainingConfig) or not config.checkpoint.is_in_passes():
        return 0.0
    return in_checkpoint(config, roles, processes) * config.checkpoint.is_in_background(device)


def while_saving(config: Planned, policy: PlannedRole, processes: int) -> dict[str, float]:
    """Bytes in the main process of a run on a CPU beside what is held, by what they are for: of the whole model, and
    when that is gone, of the adapter, whichever has more. Beside a GPU it is `saved`, of the machine's memory."""
    settings = policy.role.settings
    if not isinstance(config, TrainingConfig) or settings.has_soft_prompt:
        return {}
    whole, adapter = saved(policy)
    found = [_while_whole(config, policy, processes)] if whole else []
    found += [_while_adapter(config, policy, processes)] if adapter else []
    most = max(found, key=lambda parts: sum(parts.values()))
    return {name: size for name, size in most.items() if size}


def _while_whole(config: Planned, policy: PlannedRole, processes: int) -> dict[str, float]:
    """The sums of weights and their adapters, and the largest of them while it is made; then beside them those weights
    that are held in another dtype than they are written in, or laid in one tensor with others, as ZeRO 1 and 2 have all
    that train; copies of all but the sums where these are sharded, and the largest of them while it is copied."""
    counted, itemsize, zero = policy.counted, _itemsize(policy), config.distributed.zero
    frozen = counted.num_frozen - counted.num_merged - counted.num_narrow
    held = {FLOAT: counted.num_whole + frozen, NARROW: counted.num_narrow}
    added = _while_added(policy) if counted.num_merged else 0.0
    converted = itemsize * sum(number for size, number in held.items() if size != itemsize)
    if itemsize == FLOAT and zero in (1, 2):
        converted += itemsize * counted.num_whole
    sharded = sum(size * number for size, number in held.items()) if zero == 3 else 0
    return {
        "weights with their adapters": float(counted.num_merged * itemsize),
        "copies": float(sharded + converted * (converted > added)),
        "a sum while it is made": added * (converted <= added),
        "a weight that is gathered": made_whole(FLOAT * _table(policy), config.distributed, processes),
    }


def _while_adapter(config: Planned, policy: PlannedRole, processes: int) -> dict[str, float]:
    """Copies of all of it, and what else the largest of its weights takes while it is copied: embeddings or a head,
    where they train."""
    itemsize, largest = _itemsize(policy), _table(policy)
    largest *= policy.counted.num_whole >= largest
    copied = FLOAT * (config.distributed.zero == 3) + itemsize * (itemsize != FLOAT)
    return {
        "the adapter and what trains beside it": float(policy.counted.num_in_adapter * itemsize),
        "a weight while it is copied": float(largest * copied),
        "a weight that is gathered": made_whole(FLOAT * largest, config.distributed, processes),
    }


def _while_added(policy: PlannedRole) -> float:
    """In float32 what an adapter adds to the largest weight that has one, that weight, where it is held in fewer bits,
    and what the sum has more than it is written in."""
    counted = policy.counted
    return float(counted.num_largest * (2 * FLOAT - _itemsize(policy)) + counted.num_unpacked * FLOAT)


def _number(policy: PlannedRole) -> int:
    """Of the weights that are written."""
    return policy.counted.num_whole + policy.counted.num_frozen


def _table(policy: PlannedRole) -> int:
    """Of the embeddings, most often the largest weight."""
    return policy.counted.num_pieces * int(config_and_trust(policy.role)[0].get_text_config().hidden_size)


def _itemsize(policy: PlannedRole) -> int:
    settings = policy.role.settings
    dtype = None if settings.path is None else config_and_trust(policy.role)[0].dtype
    return dtype.itemsize if isinstance(dtype, torch.dtype) else FLOAT

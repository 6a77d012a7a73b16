"""The bytes of a model as it is saved, and of what is made of its weights for that."""

import torch

from alignment.config.run import TrainingConfig
from alignment.distributed.precision import is_half
from alignment.models.footprint import config_and_trust
from alignment.plan.buffers import FLOAT, made_whole
from alignment.plan.roles import Planned, PlannedRole


def saved(policy: PlannedRole) -> float:
    """Of all its weights, an adapter merged into them, in the dtype that they came in; of a soft prompt, and of an
    adapter that is left apart, it alone."""
    settings = policy.role.settings
    if settings.has_soft_prompt or (settings.has_adapter and not settings.lora.merge):
        return float(policy.counted.num_trained * FLOAT)
    return float(_number(policy) * _itemsize(policy))


def while_saving(config: Planned, policy: PlannedRole, processes: int) -> dict[str, float]:
    """Bytes in the main process of a run on a CPU beside what is held, by what they are for: the sums of weights and
    their adapters, the largest of them while it is made, copies of the others where these are sharded, the largest of
    them while it is copied, and what is converted. Beside a GPU it is `saved`, of the machine's memory."""
    settings, is_sharded = policy.role.settings, config.distributed.zero == 3
    if not isinstance(config, TrainingConfig) or settings.has_soft_prompt or not settings.lora.merge:
        return {}
    itemsize, number = _itemsize(policy), _number(policy)
    merged = number - _outside(policy) if settings.has_adapter else 0
    copied = FLOAT * is_sharded + itemsize * (itemsize != FLOAT)
    found = {"weights with their adapters": float(merged * itemsize), "copies": float((number - merged) * copied)}
    found["a sum while it is made"] = _while_added(config, policy) if merged else 0.0
    found["a weight that is gathered"] = made_whole(FLOAT * _table(policy), config.distributed, processes)
    return {name: size for name, size in found.items() if size}


def _while_added(config: Planned, policy: PlannedRole) -> float:
    """In float32 what an adapter adds to a layer's largest weight, that weight, where it is held in fewer bits, and
    what the sum has more than it is written in."""
    text = config_and_trust(policy.role)[0].get_text_config()
    is_fewer = is_half(config.distributed) or policy.role.settings.is_packed
    widest: int = max(text.hidden_size, text.to_dict().get("intermediate_size") or 0)
    return float(text.hidden_size * widest * (FLOAT * (1 + is_fewer) + FLOAT - _itemsize(policy)))


def _number(policy: PlannedRole) -> int:
    """Of the weights that are written."""
    counted = policy.counted
    return counted.num_frozen if policy.role.settings.has_adapter else counted.num_trained + counted.num_frozen


def _outside(policy: PlannedRole) -> int:
    """Of them, those of embeddings and of a language model's head of its own, which have no adapters."""
    config = config_and_trust(policy.role)[0].get_text_config()
    return _table(policy) * (1 if policy.role.is_scalar or config.tie_word_embeddings else 2)


def _table(policy: PlannedRole) -> int:
    """Of the embeddings, most often the largest weight."""
    return policy.counted.num_pieces * int(config_and_trust(policy.role)[0].get_text_config().hidden_size)


def _itemsize(policy: PlannedRole) -> int:
    settings = policy.role.settings
    dtype = None if settings.path is None else config_and_trust(policy.role)[0].dtype
    return dtype.itemsize if isinstance(dtype, torch.dtype) else FLOAT

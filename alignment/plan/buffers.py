"""What DeepSpeed keeps beside a model's weights, gradients and optimizer."""

from alignment.config.distributed import DistributedConfig, Offload
from alignment.distributed.precision import is_half
from alignment.distributed.settings import deepspeed_settings
from alignment.models.counted import SMALL, Counted
from alignment.models.held import Held

FLOAT, NARROW = 4, 2  # bytes of a number, of float32 and of half precision
AT_ONCE = 500_000_000  # numbers that ZeRO 0 sends: DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE
DEFAULTS = {  # of 0.19.8, in numbers of elements
    "reduce_bucket_size": 500_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_param_persistence_threshold": SMALL,
    "stage3_prefetch_bucket_size": 50_000_000,
}


def buckets(distributed: DistributedConfig, counted: Counted) -> float:
    """Bytes of the buckets in which the gradients of one engine are laid together before they are summed: while a step
    lasts, and under ZeRO 3 from then on."""
    settings = _settings(distributed, counted)
    if not distributed.zero or settings.get("contiguous_gradients", True) is False:
        return 0.0
    number = 2 if settings.get("overlap_comm") and distributed.zero in (1, 2) else 1
    narrow = NARROW if is_half(distributed) else 0  # of what crosses in half precision, beside
    return (FLOAT * number + narrow) * float(settings["reduce_bucket_size"])


def laid_together(held: Held, distributed: DistributedConfig, processes: int) -> float:
    """Bytes of gradients that DeepSpeed lays together beside those that a process has summed so far: under ZeRO 0 all
    that it sends at once, as a step's last pass ends; under 1 then the process's share of them, and under 2 in each
    pass, from the first that is reduced to the pass's end; and under both its share once more to update the weights.
    What an optimizer in CPU memory reads goes there at once."""
    if distributed.zero == 0:
        sent = NARROW / FLOAT if is_half(distributed) else 0.0
        return (1 + sent) * min(held.gradients, FLOAT * AT_ONCE)
    if distributed.zero not in (1, 2) or distributed.offload_optimizer is not Offload.none:
        return 0.0
    return held.gradients if distributed.zero == 2 else held.gradients / processes


def gathered(counted: Counted, distributed: DistributedConfig, processes: int) -> float:
    """Bytes, at most, of the weights that ZeRO 3 makes whole while a pass runs, beside the shards and `left_whole`:
    those of the layers at work and of the next ones, what it expects to need again soon, and the message in which one
    bucket of them came, which is there until the last of them is read."""
    if not _is_gathered(distributed, processes):
        return 0.0
    settings = _settings(distributed, counted)
    size = counted.shared / max(1, counted.num_shared)
    number = (counted.shared - left_whole(counted, distributed, processes)) / max(1, size)
    bucket = float(settings["stage3_prefetch_bucket_size"])
    sent = min(size, NARROW) if is_half(distributed) else size
    message = sent * min(number, bucket) if processes > 1 else 0.0
    return size * min(number, float(settings["stage3_max_live_parameters"]) + bucket) + message


def left_whole(counted: Counted, distributed: DistributedConfig, processes: int) -> float:
    """Bytes of the small weights that ZeRO 3 leaves whole beside their shards, between passes and between steps too."""
    if not _is_gathered(distributed, processes):
        return 0.0
    return counted.small if _settings(distributed, counted)["stage3_param_persistence_threshold"] else 0.0


def casts(copies: float, layer: float, distributed: DistributedConfig) -> float:
    """Bytes of weights in the dtype of their products, of those that are there together: autocast keeps each until the
    forward ends. The linear layers that DeepSpeed puts in their place under ZeRO 3 keep none, seen of a run of two
    bytes a weight more under stages 0 to 2 and of none under 3."""
    return copies if distributed.zero != 3 else min(copies, layer / 2)


def made_whole(weights: float, distributed: DistributedConfig, processes: int) -> float:
    """Of so many bytes of weights, what comes to the device where they are made whole beside their shards."""
    return weights if _is_gathered(distributed, processes) else 0.0


def _is_gathered(distributed: DistributedConfig, processes: int) -> bool:
    """Whether whole weights are other tensors than their shards: of one process a shard on its device is the whole."""
    return distributed.zero == 3 and (processes > 1 or distributed.offload_param is not Offload.none)


def _settings(distributed: DistributedConfig, counted: Counted) -> dict[str, float]:
    if distributed.zero is None:
        return {}
    numbers = (counted.num_trained + counted.num_frozen, counted.num_trained)
    return DEFAULTS | deepspeed_settings(distributed, max_grad_norm=None, numbers=numbers)["zero_optimization"]

"""What DeepSpeed keeps beside a model's weights, gradients and optimizer."""

from alignment.config.distributed import DistributedConfig, Offload, Precision
from alignment.distributed.precision import precision_of
from alignment.distributed.settings import deepspeed_settings
from alignment.models.counted import Counted

FLOAT = 4  # bytes of a float32 number
DEFAULTS = {  # of 0.19.8, in numbers of elements
    "reduce_bucket_size": 500_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}


def buckets(distributed: DistributedConfig, counted: Counted) -> float:
    """Bytes of the buckets in which the gradients of one engine are laid together before they are summed: while a step
    lasts, and under ZeRO 3 from then on."""
    settings = _settings(distributed, counted)
    if not distributed.zero or settings.get("contiguous_gradients", True) is False:
        return 0.0
    number = 2 if settings.get("overlap_comm") and distributed.zero == 2 else 1
    narrow = 2 if precision_of(distributed) is Precision.bfloat16 else 0  # of what crosses in bfloat16, beside
    return (FLOAT * number + narrow) * float(settings["reduce_bucket_size"])


def gathered(counted: Counted, distributed: DistributedConfig, processes: int) -> float:
    """Bytes, at most, of the weights that ZeRO 3 has whole while a pass runs: those of the layers at work and of the
    next ones, and what it expects to need again soon."""
    if distributed.zero != 3:
        return 0.0
    settings = _settings(distributed, counted)
    number = counted.num_trained + counted.num_frozen
    size = (counted.trained + counted.frozen) / max(1, number)
    live = float(settings["stage3_max_live_parameters"]) + float(settings["stage3_prefetch_bucket_size"])
    return size * min(number, live) * share_elsewhere(distributed, processes)


def casts(copies: float, layer: float, distributed: DistributedConfig) -> float:
    """Bytes of weights in the dtype of their products, of those that are there together: autocast keeps each until the
    forward ends. The linear layers that DeepSpeed puts in their place under ZeRO 3 keep none, seen of a run of two
    bytes a weight more under stages 0 to 2 and of none under 3."""
    return copies if distributed.zero != 3 else min(copies, layer / 2)


def share_elsewhere(distributed: DistributedConfig, processes: int) -> float:
    """Of the weights that ZeRO 3 makes whole, what is not on the device already."""
    return 1.0 if distributed.offload_param is not Offload.none else 1 - 1 / processes


def _settings(distributed: DistributedConfig, counted: Counted) -> dict[str, float]:
    if distributed.zero is None:
        return {}
    numbers = (counted.num_trained + counted.num_frozen, counted.num_trained)
    return DEFAULTS | deepspeed_settings(distributed, max_grad_norm=None, numbers=numbers)["zero_optimization"]

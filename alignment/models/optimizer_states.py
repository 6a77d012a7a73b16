"""What an optimizer keeps of the weights that it trains, in bytes, before it is there."""

from collections.abc import Mapping
from functools import reduce
from math import ceil, prod

from torch import Size

from alignment.config.optimizer import AT_ONCE, MIN_8BIT, MIN_PAGED, OF_BLOCKS, OptimizerName
from alignment.config.train import TrainConfig
from alignment.distributed.engine import shape_of
from alignment.models.heads import Trunk
from alignment.models.held import States
from alignment.models.weight_kinds import WeightKind, head_of, is_for, weight_kinds

FLOAT, HALF = 4, 2
BLOCK = 256  # numbers of 8 bits that share a scale, by bitsandbytes
ROUNDED = 23  # bytes of each number that adamw_bf16 updates at once: its states in float32, and one of them rounded


def state_bytes(train: TrainConfig | None, kind: WeightKind, shape: Size) -> States:
    """Of a weight of this kind and whole shape. `train` None: AdamW's."""
    name, number = OptimizerName.adamw if train is None else train.optimizer, prod(shape)
    is_adamw_s = not is_for(name, kind, len(shape)) or (name in OF_BLOCKS and number < MIN_8BIT)
    scales = 0
    if is_adamw_s or name is OptimizerName.adamw:
        kept = 2 * FLOAT * number
    elif name in OF_BLOCKS:
        kept, scales = 2 * number, 2 * FLOAT * ceil(number / BLOCK)
    elif name is OptimizerName.adamw_bf16:
        kept = 2 * HALF * number
    elif name is OptimizerName.adafactor and len(shape) >= 2:
        return States(FLOAT * (number / shape[-1] + number / shape[-2]), update=update_bytes(train, shape))
    else:
        kept = 0 if _keeps_none(train) else FLOAT * number
    paged = kept if name is OptimizerName.paged_adamw_8bit and number >= MIN_PAGED else 0
    return States(kept + scales, paged, paged, 0.0 if is_adamw_s else update_bytes(train, shape))


def update_bytes(train: TrainConfig | None, shape: Size) -> float:
    """What the optimizer makes while it updates a weight of this shape, beside the states that it keeps. The fused
    AdamW makes nothing."""
    number = prod(shape)
    match None if train is None else train.optimizer:
        case OptimizerName.adamw_bf16:
            return float(ROUNDED * min(number, max(AT_ONCE, number // max(1, shape[0]))))
        case OptimizerName.adafactor:  # the update and its negative, and what these are made of
            return 2.0 * FLOAT * number
        case OptimizerName.muon:  # the update, twice in bfloat16 beside it, and what multiplies it
            return (FLOAT + 2 * HALF) * number + 2.0 * HALF * min(shape) ** 2
        case OptimizerName.sgd:
            return float(FLOAT * number) if train is not None and train.weight_decay else 0.0
    return 0.0


def least_state_bytes(train: TrainConfig) -> float:
    """Of a weight on its device, whatever it is of: pages may all be elsewhere."""
    least = {OptimizerName.adamw: 2 * FLOAT, OptimizerName.adamw_8bit: 2}
    least |= {OptimizerName.adafactor: 0, OptimizerName.paged_adamw_8bit: 0}
    return least.get(train.optimizer, 0 if _keeps_none(train) else FLOAT)


def all_states(train: TrainConfig | None, kinds: Mapping[str, WeightKind], shapes: Mapping[str, Size]) -> States:
    """Of weights by name."""
    return reduce(States.beside, (state_bytes(train, kinds[name], shape) for name, shape in shapes.items()), States())


def states_of(model: Trunk, train: TrainConfig) -> float:
    """Bytes, of all that the model trains, whole."""
    shapes = {name: shape_of(p) for name, p in model.trained().items()}
    return all_states(train, weight_kinds(model, head_of(model.hf)), shapes).kept


def gradient_bytes(train: TrainConfig | None, trained: float) -> float:
    """Of the gradients that are kept of so many bytes of weights, when all of a step's are there: by lomo none."""
    return 0.0 if train is not None and train.optimizer is OptimizerName.lomo else trained


def has_momentum(train: TrainConfig | None) -> bool:
    return train is not None and bool(train.constants.momentum)


def _keeps_none(train: TrainConfig | None) -> bool:
    is_sgd = train is not None and train.optimizer in (OptimizerName.sgd, OptimizerName.lomo)
    return is_sgd and not has_momentum(train)

"""What an optimizer keeps of the weights that it trains, in bytes, before it is there."""

from math import ceil, prod

from torch import Size

from alignment.config.optimizer import MIN_8BIT, OptimizerName
from alignment.config.train import TrainConfig
from alignment.distributed.engine import shape_of
from alignment.models.heads import Trunk
from alignment.models.weight_kinds import WeightKind, head_of, is_for, weight_kinds

FLOAT = 4
BLOCK = 256  # numbers of 8 bits that share a scale, by bitsandbytes


def state_bytes(train: TrainConfig | None, kind: WeightKind, shape: Size) -> float:
    """Of a weight of this kind and whole shape. `train` None: AdamW's."""
    name, number = OptimizerName.adamw if train is None else train.optimizer, prod(shape)
    is_adamw_s = not is_for(name, kind, len(shape)) or (name is OptimizerName.adamw_8bit and number < MIN_8BIT)
    if is_adamw_s or name is OptimizerName.adamw:
        return 2 * FLOAT * number
    if name is OptimizerName.adamw_8bit:
        return 2 * (number + FLOAT * ceil(number / BLOCK))
    if name is OptimizerName.adafactor and len(shape) >= 2:
        return FLOAT * (number / shape[-1] + number / shape[-2])
    return 0 if name is OptimizerName.sgd and not has_momentum(train) else FLOAT * number


def least_state_bytes(train: TrainConfig) -> float:
    """Of a weight, whatever it is of."""
    least = {OptimizerName.adamw: 2 * FLOAT, OptimizerName.adamw_8bit: 2, OptimizerName.adafactor: 0}
    is_none = train.optimizer is OptimizerName.sgd and not has_momentum(train)
    return least.get(train.optimizer, 0 if is_none else FLOAT)


def states_of(model: Trunk, train: TrainConfig) -> float:
    """Of all that the model trains, whole."""
    kinds = weight_kinds(model, head_of(model.hf))
    return sum(state_bytes(train, kinds[name], shape_of(p)) for name, p in model.trained().items())


def has_momentum(train: TrainConfig | None) -> bool:
    return train is not None and bool(train.constants.momentum)

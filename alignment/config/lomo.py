"""What an update within the backward pass goes with (LOMO, arXiv:2306.09782)."""

import math

from alignment.config.distributed import DistributedConfig, Precision
from alignment.config.errors import require
from alignment.config.log import LogConfig
from alignment.config.optimizer import OptimizerName
from alignment.config.train import OnNonFinite, TrainConfig

LATE = "with train.optimizer=lomo, whose weights have changed by the time that"


def require_lomo(train: TrainConfig, distributed: DistributedConfig, log: LogConfig) -> None:
    """Raise `ConfigError` where a run that updates weights in its backward pass is asked for what takes gradients."""
    if train.optimizer is not OptimizerName.lomo:
        return
    rule = f"train.max_grad_norm must be inf {LATE} a norm is known (train.optimizer=sgd clips)"
    require(train.max_grad_norm == math.inf, rule, train.max_grad_norm)
    rule = f"train.on_nonfinite must be stop {LATE} a gradient is found to be no number"
    require(train.on_nonfinite is OnNonFinite.stop, rule, train.on_nonfinite)
    rule = f"distributed.precision must be auto, float32 or bfloat16 {LATE} an overflow is known"
    require(distributed.precision is not Precision.float16, rule, distributed.precision)
    rule = "log.ranges_every must be 0 with train.optimizer=lomo, which leaves no gradients to look at"
    require(log.ranges_every == 0, rule, log.ranges_every)

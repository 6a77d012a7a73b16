"""Roles that do not train, whole on every process or sharded among them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from alignment.config.distributed import DistributedConfig
from alignment.config.errors import UserError
from alignment.distributed import collectives
from alignment.distributed.deepspeed import layer_by_layer, ready, whole
from alignment.distributed.engine import counts
from alignment.distributed.layers import require_sharded
from alignment.distributed.precision import autocast
from alignment.distributed.settings import deepspeed_settings


class FrozenEngine:
    """A role that does not train (reference, reward): forwards without gradients, through `model`.

    Under ZeRO 3 it may be sharded: its weights are sharded among the processes and each layer is gathered when it is
    used, so that every forward is a collective. Otherwise each process has a whole copy and runs it alone.
    """

    def __init__(self, model: nn.Module, *, config: DistributedConfig, sharded: bool) -> None:
        """Raises:
        UserError: `sharded` is asked for without ZeRO 3, or of a model that is whole.
        """
        if sharded and config.zero != 3:
            raise UserError(f"a frozen role is sharded only under distributed.zero=3, got {config.zero}")
        model.requires_grad_(False)
        model.eval()
        self.device = collectives.pick_device(config.device)
        self.module = model
        self._config = config
        self._offload: Any = None
        if not sharded:
            self.model = model.to(self.device)
            return
        require_sharded(model)
        settings = deepspeed_settings(config, max_grad_norm=None, numbers=counts(model))
        settings["zero_optimization"].pop("offload_optimizer", None)
        deepspeed, self.device = ready(config)
        self.model, *_ = deepspeed.initialize(model=model, config=settings)
        self._offload = self.model.optimizer

    @contextmanager
    def precision(self) -> Iterator[None]:
        with autocast(self._config):
            yield

    def release(self) -> None:
        """Give the memory of the weights back; nothing can be asked of it then. DeepSpeed itself holds on to every
        module that it has sharded."""
        parameter: Any
        for parameter in self.module.parameters():
            parameter.data = parameter.new_empty(0)
            if self._offload is not None:
                parameter.ds_tensor.data = parameter.ds_tensor.new_empty(0)

    def gathered(self) -> AbstractContextManager[None]:
        """As an engine's."""
        return nullcontext() if self._offload is None else whole(self.module, self._offload)

    def by_layer(self) -> AbstractContextManager[None]:
        """As an engine's."""
        return nullcontext() if self._offload is None else layer_by_layer(self.module, self._offload)

    @contextmanager
    def partitioned(self) -> Iterator[None]:
        """As an engine's."""
        if self._offload is not None:
            self._offload.partition_all_parameters()
        yield


def frozen_engine(model: nn.Module, config: DistributedConfig) -> FrozenEngine:
    """Sharded under ZeRO 3, whole on each process otherwise."""
    return FrozenEngine(model, config=config, sharded=config.zero == 3)


def shard_frozen(model: nn.Module, config: DistributedConfig) -> nn.Module:
    """What the forwards of a model that does not train go through: under ZeRO 3 the model sharded, else it as it is."""
    return FrozenEngine(model, config=config, sharded=True).model if config.zero == 3 else model

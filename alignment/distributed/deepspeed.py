"""DeepSpeed's ZeRO (arXiv:1910.02054) behind the engine's protocol; the only door to deepspeed.

Stage 0 shards nothing but the data, 1 the optimizer's states, 2 the gradients too, 3 the weights as well.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from alignment.config.distributed import DistributedConfig, Offload
from alignment.config.errors import UserError
from alignment.distributed import collectives
from alignment.distributed.device import tell_deepspeed
from alignment.distributed.engine import Merges, counts, load_schedule, optimizer_state
from alignment.distributed.layers import require_sharded, running_by_layer, trace_passes_that_learn, without_hooks
from alignment.distributed.loss_scale import go_on, loss_scale_of, state_of
from alignment.distributed.precision import autocast, compute_dtype
from alignment.distributed.ranges import RangeWatch, before_steps, look_if_due
from alignment.distributed.reshard import Groups, described, recut
from alignment.distributed.settings import deepspeed_settings
from alignment.distributed.trained_groups import filled, forget, held, load_shard, offsets_and_shapes, trained_groups
from alignment.distributed.turns import Turns
from alignment.distributed.wire import as_stored, dtypes_kept, hold_narrow, send_narrow
from alignment.distributed.zero_step import decided, reduce_what_the_last_pass_left, scale_here
from alignment.process import uncompiled


class DeepSpeedEngine:
    """One model, its optimizer and its schedule, on all processes; there may be several engines at once.

    Weights, master weights and optimizer are float32, forward and backward in float32 or under autocast, as in
    the engine of one process. `model` is DeepSpeed's wrapping of the module; a forward without gradients may as well go
    through the module itself. Under ZeRO 3 every forward is a collective: all processes run equally many.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        *,
        config: DistributedConfig,
        max_grad_norm: float,
        watch: RangeWatch | None = None,
    ) -> None:
        """Raises:
        UserError: ZeRO 3 is asked for, of a model that is whole.
        """
        numbers = self.num_weights, self.num_trained = counts(model)
        settings = deepspeed_settings(config, max_grad_norm=max_grad_norm, numbers=numbers)
        deepspeed, self.device = ready(config)
        self.optimizer, self.scheduler, self.max_grad_norm = optimizer, scheduler, max_grad_norm
        assert config.zero is not None
        if config.zero == 3:
            require_sharded(model)
        self._stage, self._config, self._module = config.zero, config, model
        self.scaling, self.watch = loss_scale_of(config), watch
        self.merging: Merges | None = None
        self._begin: Callable[[], Any] = nullcontext
        self._norm = torch.zeros((), device=self.device)
        self._take: Callable[[bool], bool] = bool
        self._update: Tensor | None = None
        if config.zero == 0:  # DeepSpeed clips here without telling the norm; this runs when gradients are summed
            optimizer.register_step_pre_hook(self._clip)
        send_narrow(model, settings, config.zero)
        self.model, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self._zero = self.model.optimizer
        scale_here(self.model, config.zero)
        before_steps(self._zero, lambda: look_if_due(self.watch, scheduler, self._stage, self._zero, model))
        trace_passes_that_learn(model, self._zero, self._stage)
        if config.zero == 1:
            reduce_what_the_last_pass_left(self._zero)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """DeepSpeed takes the mean over processes, and a step's loss is their sum."""
        if self._stage == 1:  # as its gradients are made they are summed, in the last pass alone
            self.model.set_gradient_accumulation_boundary(is_last)
        loss = loss * collectives.size()
        if self.scaling is not None and self._stage == 0:
            loss = loss * self.scaling.scale
        elif self.scaling is not None:
            self._zero.override_loss_scale(self.scaling.scale)  # by which it multiplies here, and divides in its step
        self.model.backward(loss)

    def step(self, *, update: Tensor | None = None, agree: Callable[[bool], bool] | None = None) -> tuple[Tensor, bool]:
        """The norm is infinite where ZeRO was told to leave the step out; it looks at the norm behind `update`."""
        self._begin()
        self._update, is_taken = update, True
        may = self._stage == 0 or update is None or bool(update)

        def take(is_finite: bool) -> bool:
            nonlocal is_taken
            is_taken = may and is_finite if agree is None else agree(may and is_finite)
            return is_taken

        self._take = take
        is_plain = self._stage == 0 or (may and agree is None)
        with nullcontext() if is_plain else decided(self._zero, self._stage, take):
            self.model.step()
        norm = self._norm
        if self._stage != 0:
            norm = torch.as_tensor(self.model.get_global_grad_norm(), device=self.device).detach()
            is_taken = is_taken and bool(norm.isfinite())
        if is_taken:
            self.scheduler.step()
        if self.scaling is not None:
            self.scaling.update(is_taken=is_taken)
        return norm, is_taken

    def _clip(self, optimizer: Optimizer, *_: Any) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        if self.scaling is not None:
            self.scaling.unscale(trained)
        self._norm = nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
        is_sound = self._norm.isfinite() if self._update is None else self._norm.isfinite() & self._update
        if not self._take(bool(is_sound)):
            for p in trained:
                p.grad = None  # the optimizer passes over a weight without one

    def take_turns(self, turns: Turns) -> None:
        """With other engines, under ZeRO 3, whose models have weights in common with this one's."""
        self._begin = turns.of(self._module, self._zero.parameter_offload)

    def forget(self, begun: Sequence[nn.Parameter]) -> None:
        """As the engine's protocol says."""
        forget(self._stage, self._zero, self.optimizer, begun)

    def learning_rate(self) -> float:
        return float(self.scheduler.get_last_lr()[0])

    @contextmanager
    def precision(self) -> Iterator[None]:
        with autocast(self._config):
            yield

    def gathered(self) -> AbstractContextManager[None]:
        """As the engine's protocol says."""
        return self._whole() if self._stage == 3 else nullcontext()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        self._begin()
        with dtypes_kept(self._module), whole(self._module, self._zero.parameter_offload):
            hold_narrow(self._module, compute_dtype(self._config))
            yield

    def by_layer(self) -> AbstractContextManager[None]:
        """As the engine's protocol says."""
        self._begin()
        return layer_by_layer(self._module, self._zero.parameter_offload) if self._stage == 3 else nullcontext()

    @contextmanager
    def partitioned(self) -> Iterator[None]:
        """Small weights, which ZeRO 3 keeps whole, are sharded too until the next forward."""
        self._begin()
        if self._stage == 3:
            self._zero.parameter_offload.partition_all_parameters()
        yield

    def state(self) -> dict[str, Any]:
        """What this process holds of it: plain tensors, numbers, strings, lists and dicts.

        Raises:
            UserError: the optimizer's states are offloaded to nvme, where they cannot be read from here.
        """
        if self._config.offload_optimizer is Offload.nvme:
            raise UserError("nothing can be saved with distributed.offload_optimizer=nvme: run again, it starts over")
        state = {**self._place(), **self._layout(), **self._shard(), **state_of(self.scaling)}
        return {**state, "scheduler": self.scheduler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises:
        UserError: the state is of another ZeRO stage, number of processes or rank, or laid out in another way.
        """
        place = self._place()
        saved = {name: state[name] for name in place}
        if saved != place:
            raise UserError(f"the checkpoint is of {described(saved)}, and this process is {described(place)}")
        if any(state[name] != value for name, value in self._layout().items()):
            why = "are not this model's, or distributed.deepspeed_config has them laid out in another way"
            raise UserError(f"the checkpoint's weights {why}")
        self._begin()
        load_shard(self._stage, self._zero, self.optimizer, state)
        load_schedule(self.scheduler, state["scheduler"])
        go_on(self.scaling, state)

    def load_resharded(self, saved: Sequence[dict[str, Any]]) -> None:
        """As the engine's protocol says."""
        self.load_state(recut(saved, self.state(), self._groups()))

    def _place(self) -> dict[str, int]:
        return {"zero": self._stage, "processes": collectives.size(), "rank": collectives.rank()}

    def _layout(self) -> dict[str, Any]:
        return offsets_and_shapes(self._stage, self._zero, self._groups())

    def _groups(self) -> Groups:
        return trained_groups(self._stage, self._zero, self.optimizer, self._module)

    def _shard(self) -> dict[str, Any]:
        with filled(self._zero) if self._stage == 3 else nullcontext():
            optimizer = optimizer_state(self.optimizer)
        return {"weights": [flat.detach() for flat in self._held()], "optimizer": optimizer}

    def _held(self) -> list[Tensor]:
        return held(self._stage, self._zero, self.optimizer)


@contextmanager
def whole(module: nn.Module, offload: Any) -> Iterator[None]:
    """`gathered`, for a module that ZeRO 3 shards through `offload`."""
    import deepspeed

    weights = list(module.parameters())
    with without_hooks(module, offload), as_stored(weights), deepspeed.zero.GatheredParameters(weights):
        yield


@contextmanager
def layer_by_layer(module: nn.Module, offload: Any) -> Iterator[None]:
    """`by_layer`, likewise."""
    import deepspeed

    with without_hooks(module, offload), running_by_layer(module, deepspeed.zero.GatheredParameters):
        yield


def ready(config: DistributedConfig) -> tuple[ModuleType, torch.device]:
    """deepspeed, told which device it is for before it looks itself, and quiet; and that device."""
    device = collectives.pick_device(config.device)
    tell_deepspeed(device)
    with uncompiled():  # ZeRO looks for Muon, which has itself compiled when it is imported, and which no run has
        import deepspeed.runtime.zero.muon.muon_optimizer
    deepspeed.utils.logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")  # its old calls
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a build in C++, for inference on CPUs
    collectives.init(config)
    os.environ.setdefault("LOCAL_RANK", "0")  # it insists, also where there is no launcher to set it
    return deepspeed, device

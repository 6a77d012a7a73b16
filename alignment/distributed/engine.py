"""The engine: the only thing that knows of devices, precision and sharding.

The one here is plain torch in one process, on a CPU or a GPU; distributed/deepspeed.py has the one of many.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from alignment.config.distributed import DistributedConfig
from alignment.distributed.collectives import pick_device
from alignment.distributed.loss_scale import LossScale, go_on, loss_scale_of, state_of
from alignment.distributed.precision import autocast
from alignment.distributed.ranges import RangeWatch, whole_parts
from alignment.distributed.reshard import recut

SETTINGS = ("betas", "eps", "weight_decay", "momentum")  # of an optimizer's groups


class Merges(Protocol):
    """What writes into the weights after a step: an adapter that is merged and begins anew."""

    def after(self) -> None:
        """Once behind each step that was taken."""
        ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...

    def load_resharded(self, saved: Sequence[dict[str, Any]]) -> None: ...


class Engine(Protocol):
    """What the training step needs of a model that may be anywhere."""

    model: nn.Module
    device: torch.device
    num_weights: int
    """Of the whole model, wherever they are."""
    num_trained: int
    optimizer: Optimizer
    """On the weights themselves, but under ZeRO 1 to 3 on pieces of them."""
    scaling: LossScale | None
    """Of float16: `backward` multiplies the loss by it, `step` divides by it and changes it."""
    watch: RangeWatch | None
    """Looks at gradients and weights as a step begins."""
    merging: Merges | None
    """None where no adapter is merged as the run goes on. The training step calls it; a checkpoint has it as a part of
    its own."""

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the loss's gradient to the step's; `is_last` is that of its last micro-batch, while whose backward pass
        gradients that are summed once a step may be sent."""
        ...

    def step(self, *, update: Tensor | None = None, agree: Callable[[bool], bool] | None = None) -> tuple[Tensor, bool]:
        """Clip, update, zero the gradients; returns the gradient's norm before clipping, a scalar on the device, and
        whether the step was taken.

        Weights, optimizer and schedule stay as they are where that norm is not finite, and where `update`, a bool on
        the device, is False. `agree` is asked once, with whether the step could be taken, and says whether it is: where
        another engine's is left out, this one's may be too. A GPU is waited for once.
        """
        ...

    def forget(self, begun: Sequence[nn.Parameter]) -> None:
        """These trained weights were written between two steps: the optimizer goes on with them as with new ones. It
        has groups of such weights alone, for ZeRO keeps a group's states end to end."""
        ...

    def learning_rate(self) -> float: ...

    def precision(self) -> Any:
        """A context in which forwards run in the configured precision."""
        ...

    def gathered(self) -> AbstractContextManager[None]:
        """A context in which the module's weights are whole on every process, to be read and not to be changed, for
        generation in `precision`: under ZeRO 3 those of products are held in what these compute in. All processes enter
        and leave it; inside, each runs as many forwards without gradients as it likes, on its own."""
        ...

    def by_layer(self) -> AbstractContextManager[None]:
        """The same, but nothing is whole except the layer that runs, gathered anew for each forward. A process that
        leaves the block goes on gathering, with its shards, until the others have left it too."""
        ...

    def partitioned(self) -> AbstractContextManager[None]:
        """A context in which every weight is where the model's placement has it, to be read through that."""
        ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...

    def load_resharded(self, saved: Sequence[dict[str, Any]]) -> None:
        """Go on from what the ranks 0, 1, ... of another number of processes, or another ZeRO stage, saved.

        Raises:
            UserError: it is of another model, or does not fit this stage (`reshard.recut`).
        """
        ...


class TorchEngine:
    """One process: float32 weights, forward and backward in float32 or under autocast."""

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
        self.device = pick_device(config.device)
        self.num_weights, self.num_trained = counts(model)
        self.model = model.to(self.device)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.max_grad_norm = max_grad_norm
        self.scaling, self.watch = loss_scale_of(config), watch
        self.merging: Merges | None = None
        self._config = config
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        (loss if self.scaling is None else loss * self.scaling.scale).backward()

    def step(self, *, update: Tensor | None = None, agree: Callable[[bool], bool] | None = None) -> tuple[Tensor, bool]:
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.watch is not None and self.watch.is_due(self.scheduler.last_epoch):
            self.watch.look(*whole_parts(self.model, self.optimizer))
        if self.scaling is not None:
            self.scaling.unscale(trained)
        norm = nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
        is_taken = bool(norm.isfinite() if update is None else norm.isfinite() & update)
        if agree is not None:
            is_taken = agree(is_taken)
        if is_taken:
            self.optimizer.step()
            self.scheduler.step()
        if self.scaling is not None:
            self.scaling.update(is_taken=is_taken)
        self.optimizer.zero_grad(set_to_none=True)
        return norm, is_taken

    def forget(self, begun: Sequence[nn.Parameter]) -> None:
        for weight in begun:
            self.optimizer.state.pop(weight, None)

    def learning_rate(self) -> float:
        return float(self.scheduler.get_last_lr()[0])

    @contextmanager
    def precision(self) -> Iterator[None]:
        with autocast(self._config):
            yield

    def gathered(self) -> AbstractContextManager[None]:
        return nullcontext()

    def by_layer(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def partitioned(self) -> Iterator[None]:
        yield

    def state(self) -> dict[str, Any]:
        return {
            "model": {name: p.detach() for name, p in self._trained.items()},
            "optimizer": optimizer_state(self.optimizer),
            "scheduler": self.scheduler.state_dict(),
            **state_of(self.scaling),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        parameters = self._trained
        if parameters.keys() != state["model"].keys():
            different = sorted(parameters.keys() ^ state["model"].keys())
            raise ValueError(f"the checkpoint's weights are not this model's: {different[0]} is in one of them only")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state["model"][name])
        load_optimizer(self.optimizer, state["optimizer"])
        load_schedule(self.scheduler, state["scheduler"])
        go_on(self.scaling, state)

    def load_resharded(self, saved: Sequence[dict[str, Any]]) -> None:
        """As the protocol says."""
        names = {id(p): name for name, p in self._trained.items()}
        groups = [{names[id(p)]: p.shape for p in group["params"]} for group in self.optimizer.param_groups]
        self.load_state(recut(saved, self.state(), groups))


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """As torch has it. bitsandbytes' own puts its tensors where FSDP does not look for them, and reads either."""
    return Optimizer.state_dict(optimizer)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """What the optimizer has gathered of each weight; its settings are its own, not the saved ones, which are others
    where the run goes on with changed ones. The rate is the schedule's (`load_schedule`)."""
    own = [{name: group[name] for name in SETTINGS if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def load_schedule(scheduler: LRScheduler, state: dict[str, Any]) -> None:
    """Go on at the saved step with this schedule's own rate, which is another than the saved one where the run has been
    made longer, or has another highest rate. A schedule that is no function of the step goes on with the saved rate."""
    own = scheduler.base_lrs
    scheduler.load_state_dict(state)
    if not isinstance(scheduler, LambdaLR):
        return
    scheduler.base_lrs = own
    for group, base in zip(scheduler.optimizer.param_groups, own, strict=True):
        group["initial_lr"] = base
    bases = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    scheduler._last_lr = [base * factor(scheduler.last_epoch) for base, factor in bases]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate


def counts(model: nn.Module) -> tuple[int, int]:
    """The weights of a model, wherever they are, and those of them that train."""
    sizes = [(shape_of(p).numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)


def shape_of(weight: Tensor) -> torch.Size:
    """Of the whole weight: what is left in its place where it is sharded is empty, and ZeRO 3 notes its shape; of one
    in 4 bits, two numbers to a byte, bitsandbytes does."""
    packed: Any = vars(weight).get("quant_state")
    shape: torch.Size = vars(weight).get("ds_shape", weight.shape) if packed is None else packed.shape
    return shape

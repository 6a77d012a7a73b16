"""Where a model's weights are while no engine has it, whole in this process or sharded among several, and what the
products that read them compute in."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
StorageDtype = Callable[[nn.Module, str], torch.dtype | None]
"""(module, name of one of its own weights) -> the dtype to store it in; None: the dtype that it has."""


class Placement(Protocol):
    """How a model's weights are read, written and copied. All processes that share one do each of these together."""

    compute: torch.dtype
    """Of the products of a forward; weights that do not train are held in it."""
    reads_to: torch.device | None
    """Where `from_pretrained` is to put each weight as it is read; None: where it puts them by itself."""
    packs_on: torch.device
    """The same, where it packs each weight as it is read."""

    def reading(self) -> AbstractContextManager[None]:
        """Inside, `from_pretrained` puts each weight in its place as it is read.

        Raises:
            ValueError: a weight has another shape than the model's.
        """
        ...

    def reading_packed(self) -> AbstractContextManager[None]:
        """The same of a model some of whose weights are packed, or are packed as they are read."""
        ...

    def shard(self, module: nn.Module) -> None:
        """Put the weights that are still whole in their places."""
        ...

    def whole(self, weights: Iterable[Tensor], *, write: bool = False) -> AbstractContextManager[None]:
        """Inside, these weights are whole. With `write` they may be changed, by all processes alike."""
        ...

    def by_layer(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, forwards without gradients have each layer's weights whole while it runs."""
        ...

    def kept(self, weight: Tensor) -> Tensor:
        """A copy of a gathered weight that stays whole: on the CPU where weights are sharded."""
        ...

    def shard_of(self, weight: Tensor) -> Tensor:
        """This process's part of a weight, to be read and written: all of it, or a flat slice under ZeRO 3."""
        ...

    def not_finite(self, module: nn.Module) -> list[str]:
        """The names of the weights in which some number is none, or infinite; the same in all processes."""
        ...

    def copy_of(self, module: Module, held: StorageDtype) -> Module:
        """A copy of the module with weights of its own, placed as the module's are, each stored in its dtype by
        `held`."""
        ...


class Whole:
    """In this process, and there on its device: from files that are mapped into memory each weight goes there by
    itself, so that the host never has a copy of a model for each of its GPUs."""

    def __init__(self, compute: torch.dtype, device: torch.device | None = None) -> None:
        """`device`: None or the CPU: there weights that are held as their file has them stay in the mapped file, whose
        pages all processes share."""
        self.compute = compute
        self.reads_to = None if device == torch.device("cpu") else device
        self.packs_on = torch.device("cpu") if self.reads_to is None else self.reads_to

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()

    def reading_packed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def shard(self, module: nn.Module) -> None:
        if self.reads_to is not None:
            nn.Module.to(module, self.reads_to)  # transformers' own `to` refuses weights of 8 bits, also where they are

    def whole(self, weights: Iterable[Tensor], *, write: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def by_layer(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def kept(self, weight: Tensor) -> Tensor:
        return weight.detach()

    def shard_of(self, weight: Tensor) -> Tensor:
        return weight.detach()

    def not_finite(self, module: nn.Module) -> list[str]:
        return [name for name, weight in module.named_parameters() if not is_finite(weight)]

    @torch.no_grad()
    def copy_of(self, module: Module, held: StorageDtype) -> Module:
        return deepcopy(module, {id(p): nn.Parameter(p.to(dtype, copy=True)) for p, dtype in dtypes(module, held)})


WHOLE = Whole(torch.float32)


def is_finite(weight: Tensor) -> bool:
    """Whether all its numbers are, in one reading of them; what packs numbers into bytes is not asked."""
    if weight.numel() == 0 or not weight.is_floating_point():
        return True
    return bool(torch.stack(weight.detach().aminmax()).isfinite().all())  # a NaN is the lowest and the highest


def dtypes(module: nn.Module, held: StorageDtype) -> Iterator[tuple[nn.Parameter, torch.dtype]]:
    """Each weight once, in the order of `parameters`, and its dtype: where it is several modules', the widest."""
    found: dict[int, torch.dtype] = {}
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            dtype = held(part, name) or weight.dtype
            found[id(weight)] = torch.promote_types(dtype, found.get(id(weight), dtype))
    yield from ((weight, found[id(weight)]) for weight in module.parameters())

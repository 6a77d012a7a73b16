"""Where a model's weights are while no engine has it: whole in this process, or shared out among several."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Protocol, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Placement(Protocol):
    """How a model's weights are read, written and copied. All processes that share one do each of these together."""

    def reading(self) -> AbstractContextManager[None]:
        """Inside, `from_pretrained` puts each weight in its place as it is read.

        Raises:
            ValueError: a weight has another shape than the model's.
        """
        ...

    def share_out(self, module: nn.Module) -> None:
        """Put the weights that are still whole in their places."""
        ...

    def whole(self, weights: Iterable[Tensor], *, write: bool = False) -> AbstractContextManager[None]:
        """Inside, these weights are whole. With `write` they may be changed, by all processes alike."""
        ...

    def by_layer(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, forwards without gradients have each layer's weights whole while it runs."""
        ...

    def kept(self, weight: Tensor) -> Tensor:
        """Of a weight that is whole now, what stays so: on the CPU where weights are shared out."""
        ...

    def share(self, weight: Tensor) -> Tensor:
        """What this process has of a weight, to be read and written: all of it, or some of its elements laid flat."""
        ...

    def copy_of(self, module: Module) -> Module:
        """A second one with weights of its own, as they are now and in the same places."""
        ...


class Whole:
    """In this process: there is nothing to do."""

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()

    def share_out(self, module: nn.Module) -> None: ...

    def whole(self, weights: Iterable[Tensor], *, write: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def by_layer(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def kept(self, weight: Tensor) -> Tensor:
        return weight.detach()

    def share(self, weight: Tensor) -> Tensor:
        return weight.detach()

    def copy_of(self, module: Module) -> Module:
        return deepcopy(module)


WHOLE = Whole()

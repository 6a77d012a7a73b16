"""The bytes of the tensors that are alive while a model runs, with numbers in them or without."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignment.data.pack import Batch
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.readout import sequence_scores, token_logprobs


def peak_of(model: LanguageModel | ScalarModel, batch: Batch, compute: torch.dtype, *, is_trained: bool) -> int:
    """Bytes: the most that is alive at one time beside weights and gradients, while `batch` is read, and learned from
    where the model is trained. Of a model and a batch with numbers or without."""
    model.train(is_trained)
    known: list[Tensor] = [*model.parameters(), *model.buffers()]
    for weight in model.parameters():
        if is_trained and weight.requires_grad:
            weight.grad = torch.zeros_like(weight)  # as it is from a step's second micro-batch on
            known.append(weight.grad)
    read = sequence_scores if isinstance(model, ScalarModel) else token_logprobs
    is_lower = compute == torch.bfloat16
    with torch.set_grad_enabled(is_trained), Allocations(known) as allocations:
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=is_lower):
            total = read(model, batch).sum()
        if is_trained:
            total.backward()
    return allocations.highest


class Allocations(TorchDispatchMode):
    """Inside, every tensor that is made is counted for as long as it is alive."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """`known`: what is not counted."""
        super().__init__()
        self.highest = self._alive = 0
        self._seen: dict[int, Any] = {id(each): each for each in (tensor.untyped_storage() for tensor in known)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default:  # without numbers it is known in bfloat16 alone
            first, second, *more = args
            output = func(first.bfloat16(), second.bfloat16(), *more, **(kwargs or {})).to(first.dtype)
        else:
            output = func(*args, **(kwargs or {}))
        for made in tree_leaves(output):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage())
        return output

    def _count(self, storage: Any) -> None:
        place, size = id(storage), storage.nbytes()
        if place in self._seen:
            return

        def gone(_: Any) -> None:
            self._alive -= size
            del self._seen[place]

        self._seen[place] = weakref.ref(storage, gone)
        self._alive += size
        self.highest = max(self.highest, self._alive)


def leave_meta(model: nn.Module) -> None:
    """Have weights and buffers be on a CPU, whose autocast and kernels they then take, within a mode without numbers;
    a weight of several modules stays one."""
    made: dict[int, tuple[Tensor, Any]] = {}  # with what they were, so that none of these gives its place away
    for part in model.modules():
        for own in (part._parameters, part._buffers):
            for name, each in own.items():
                if each is not None:
                    made.setdefault(id(each), (each, _like(each)))
                    own[name] = made[id(each)][1]


def _like(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

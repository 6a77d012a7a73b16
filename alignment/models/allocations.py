"""The bytes of the tensors that are alive while a model runs, with numbers in them or without."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignment.data.pack import Batch
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.readout import sequence_scores, token_logprobs

ATTENTION = ("attn", "attention")  # how the names of such modules end


class Phase(IntEnum):
    """Of a pass. What one takes rises evenly with tokens and layers, what the highest of them takes need not."""

    forward = 0
    read_out = 1
    backward_of_read_out = 2
    backward = 3


class Part(IntEnum):
    """What a tensor of a pass is for."""

    copies = 0
    """Of the weights, in the lower precision that autocast has products compute in."""
    attention = 1
    layers = 2
    """All else between the layers' inputs and outputs, these included."""
    logits = 3
    """And what is made of them, forward and backward."""


def peak_of(model: LanguageModel | ScalarModel, batch: Batch, compute: torch.dtype, *, is_trained: bool) -> int:
    """Bytes: the most that is alive at one time beside weights and gradients, while `batch` is read, and learned from
    where the model is trained. Of a model and a batch with numbers or without."""
    return int(peaks_of(model, batch, compute, is_trained=is_trained).sum(1).max())


def peaks_of(model: LanguageModel | ScalarModel, batch: Batch, compute: torch.dtype, *, is_trained: bool) -> np.ndarray:
    """[Phase, Part] bytes: of each phase of the pass what is alive when it has most, by what it is for."""
    model.train(is_trained)
    known: list[Tensor] = [*model.parameters(), *model.buffers()]
    for weight in model.parameters():
        if is_trained and weight.requires_grad:
            weight.grad = torch.zeros_like(weight)  # as it is from a step's second micro-batch on
            known.append(weight.grad)
    read = sequence_scores if isinstance(model, ScalarModel) else token_logprobs
    is_lower = compute == torch.bfloat16
    with torch.set_grad_enabled(is_trained), Allocations(known) as allocations, _told(model, allocations):
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=is_lower):
            total = read(model, batch).sum()
        if is_trained:
            allocations.begin(Phase.backward_of_read_out)
            total.backward()
    return allocations.highest_of


@contextmanager
def _told(model: LanguageModel | ScalarModel, allocations: "Allocations") -> Iterator[None]:
    """Inside, the allocations are told where the model is in its pass."""

    def read_out(module: nn.Module, inputs: Any, output: Any) -> None:
        allocations.begin(Phase.read_out)
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda _: allocations.begin(Phase.backward))

    hooks = [model.hf.base_model.register_forward_hook(read_out)]
    for name, module in model.hf.named_modules():
        if name.endswith(ATTENTION):
            hooks.append(module.register_forward_pre_hook(partial(allocations.set_part, Part.attention)))
            hooks.append(module.register_forward_hook(partial(allocations.set_part, Part.layers)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Allocations(TorchDispatchMode):
    """Inside, every tensor that is made is counted for as long as it is alive."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """`known`: what is not counted."""
        super().__init__()
        self.highest_of = np.zeros((len(Phase), len(Part)))
        self._phase, self._part = Phase.forward, Part.layers
        self._alive = np.zeros(len(Part))
        self._seen: dict[int, Any] = {id(each): each for each in (tensor.untyped_storage() for tensor in known)}
        self._known = set(self._seen)

    @property
    def highest(self) -> int:
        """Bytes, of all parts in all phases."""
        return int(self.highest_of.sum(1).max())

    @property
    def alive(self) -> int:
        """Bytes, now."""
        return int(self._alive.sum())

    def begin(self, phase: Phase) -> None:
        self._phase = phase
        self._note()

    def set_part(self, part: Part, *_: Any) -> None:
        """What is made from here on in the layers is for that; also by a module's hook."""
        self._part = part

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default:  # without numbers it is known in bfloat16 alone
            first, second, *more = args
            output = func(first.bfloat16(), second.bfloat16(), *more, **(kwargs or {})).to(first.dtype)
        else:
            output = func(*args, **(kwargs or {}))
        part = self._part_of(func, args)
        for made in tree_leaves(output):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage(), part)
        return output

    def _part_of(self, func: Any, args: Any) -> Part:
        is_copy = func is torch.ops.aten._to_copy.default and id(args[0].untyped_storage()) in self._known
        if is_copy and self._phase is not Phase.backward_of_read_out:
            return Part.copies
        return Part.logits if self._phase in (Phase.read_out, Phase.backward_of_read_out) else self._part

    def _count(self, storage: Any, part: Part) -> None:
        place, size = id(storage), storage.nbytes()
        if place in self._seen:
            return

        def gone(_: Any) -> None:
            self._alive[part] -= size
            del self._seen[place]

        self._seen[place] = weakref.ref(storage, gone)
        self._alive[part] += size
        self._note()

    def _note(self) -> None:
        if self._alive.sum() > self.highest_of[self._phase].sum():
            self.highest_of[self._phase] = self._alive


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

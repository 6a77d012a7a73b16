"""The bytes of the tensors that are alive while a model runs, with numbers in them or without."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves
from transformers.modeling_layers import GradientCheckpointingLayer

from alignment.data.pack import Batch
from alignment.models.activations import LEAST, Hooks
from alignment.models.counted import Part, Phase, of_pass
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.readout import sequence_scores, token_logprobs, token_logprobs_and_entropy, token_values

ATTENTION = ("attn", "attention")  # how the names of such modules end


def peak_of(model: LanguageModel | ScalarModel, batch: Batch, compute: torch.dtype, *, is_trained: bool) -> int:
    """Bytes: the most that is alive at one time beside weights and gradients, while `batch` is read, and learned from
    where the model is trained. Of a model and a batch with numbers or without."""
    return int(of_pass(peaks_of(model, batch, compute, is_trained=is_trained)).max())


def peaks_of(
    model: LanguageModel | ScalarModel,
    batch: Batch,
    compute: torch.dtype,
    *,
    is_trained: bool,
    is_in_ppo: bool = False,
    is_moved: bool = False,
) -> np.ndarray:
    """[Phase, Part] bytes: of each phase of the pass what is alive when it has most, by what it is for.

    Args:
        is_in_ppo: whether it is read as PPO's update does: with the entropy of each token, or with a value for each.
        is_moved: whether what the layers keep for their backward pass goes to the CPU.
    """
    model.train(is_trained)
    model.zero_grad()
    is_lower, half = compute != torch.float32, torch.bfloat16 if compute == torch.float32 else compute
    known = [*model.parameters(), *model.buffers()]
    with torch.set_grad_enabled(is_trained), Allocations(known) as allocations, _told(model, allocations, is_moved):
        with torch.autocast(batch.input_ids.device.type, half, enabled=is_lower):
            total = _read(model, batch, is_in_ppo=is_in_ppo).sum()
        if is_trained:
            allocations.begin(Phase.backward_of_read_out)
            total.backward()
    allocations.highest_of[:, Part.on_host] = allocations.on_host
    return allocations.highest_of


def _read(model: LanguageModel | ScalarModel, batch: Batch, *, is_in_ppo: bool) -> Tensor:
    if isinstance(model, ScalarModel):
        return token_values(model, batch) if is_in_ppo else sequence_scores(model, batch)
    return token_logprobs_and_entropy(model, batch)[0] if is_in_ppo else token_logprobs(model, batch)


@contextmanager
def _told(model: LanguageModel | ScalarModel, allocations: "Allocations", is_moved: bool) -> Iterator[None]:
    """Inside, the allocations are told where the model is in its pass."""

    def read_out(module: nn.Module, inputs: Any, output: Any) -> None:
        allocations.begin(Phase.read_out)
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda _: allocations.begin(Phase.backward))

    def embedded(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _: allocations.begin(Phase.backward_of_embeddings))

    def first_layer(module: nn.Module, inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda _: allocations.begin(Phase.backward_of_first_layer))

    hooks: list[Any] = [Hooks(model.hf.base_model, allocations.moving)] if is_moved else []
    hooks.append(model.hf.base_model.register_forward_hook(read_out))
    hooks.append(model.hf.get_input_embeddings().register_forward_hook(embedded))
    layers = [module for module in model.hf.base_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    hooks += [layer.register_forward_hook(first_layer) for layer in layers[:1]]
    for name, module in model.hf.named_modules():
        if name.endswith(ATTENTION):
            hooks.append(module.register_forward_pre_hook(partial(allocations.set_part, Part.attention)))
            hooks.append(module.register_forward_hook(partial(allocations.set_part, Part.layers)))
    hooks += [p.register_post_accumulate_grad_hook(allocations.keep) for p in model.parameters() if p.requires_grad]
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
        self._part_of_place: dict[int, Part] = {}
        self.on_host = 0.0

    @property
    def highest(self) -> int:
        """Bytes, of all parts in all phases but the gradients that were to be kept."""
        return int(of_pass(self.highest_of).max())

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

    def keep(self, weight: Tensor) -> None:
        """The weight's gradient is whole, and is kept from here on; by a hook of the weight."""
        assert weight.grad is not None
        place, size = id(weight.grad.untyped_storage()), weight.grad.untyped_storage().nbytes()
        if place in self._part_of_place:
            self._alive[self._part_of_place[place]] -= size
            self._alive[Part.gradients] += size
            self._part_of_place[place] = Part.gradients

    def moving(self, layers: nn.Module) -> saved_tensors_hooks:
        """Inside, what a forward of these layers keeps for its backward pass is counted as elsewhere until that, by
        `activations.on_host`'s rule: each time that it is kept, without weights and what is small."""
        weights = {id(each.untyped_storage()) for each in layers.parameters()}

        def leave(kept: Tensor) -> Any:
            size = kept.numel() * kept.element_size()
            if size < LEAST or id(kept.untyped_storage()) in weights:
                return kept
            self.on_host += size
            return kept.shape, kept.dtype, kept.device

        def come_back(kept: Any) -> Tensor:
            return kept if isinstance(kept, Tensor) else torch.zeros(kept[0], dtype=kept[1], device=kept[2])

        return saved_tensors_hooks(leave, come_back)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented  # of a tensor that is others: what is done with these comes here by itself
        if func is torch.ops.aten._grouped_mm.default:  # without numbers it is known in bfloat16 alone
            first, second, *more = args
            output = func(first.bfloat16(), second.bfloat16(), *more, **(kwargs or {})).to(first.dtype)
        else:
            output = func(*args, **(kwargs or {}))
        part = self._part_of(func, args)
        for made in tree_leaves(output):
            if isinstance(made, Tensor) and not made.is_meta:  # which has a size, and no memory
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
            self._alive[self._part_of_place.pop(place)] -= size
            del self._seen[place]

        self._seen[place] = weakref.ref(storage, gone)
        self._part_of_place[place] = part
        self._alive[part] += size
        self._note()

    def _note(self) -> None:
        highest, is_last = self.highest_of[self._phase], self._phase is Phase.backward_of_first_layer
        kept = (self._alive - highest)[Part.gradients] if is_last else 0.0
        if of_pass(self._alive) + kept > of_pass(highest):
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
        if isinstance(part, nn.RNNBase):  # which has them in a list too
            part._flat_weights = [part._parameters[name] for name in part._flat_weights_names]


def _like(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

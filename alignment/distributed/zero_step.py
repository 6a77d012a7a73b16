"""Whether a step of DeepSpeed's is taken is for its engine here to say: when the norm of the gradients is known."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def decided(zero: Any, stage: int, take: Callable[[bool], bool]) -> Iterator[None]:
    """Inside, ZeRO asks `take` once in a step, with whether the norm of the gradients is finite; where that says no, it
    finds the norm infinite, and leaves the step out as after an overflow."""
    name = "_get_norm_groups" if stage == 3 else "scaled_global_norm"
    own, infinite, asked = getattr(zero, name), torch.tensor(float("inf")), False

    def norm() -> Tensor | list[Tensor]:
        nonlocal asked
        found, asked = own(), True
        norms = found if isinstance(found, list) else [found]  # in place of what is no number ZeRO has -1
        if take(all(bool(torch.as_tensor(each).isfinite()) and each >= 0 for each in norms)):
            return found
        return [infinite] if stage == 3 else infinite

    setattr(zero, name, norm)
    try:
        yield
        if not asked:  # it had found an overflow before
            take(False)
    finally:
        delattr(zero, name)


def scale_here(model: Any, stage: int) -> None:
    """Take from a DeepSpeed engine the scaler that it makes itself once any engine of its process is of float16."""
    if stage == 0:
        model.torch_autocast_z0_gradscaler = None
    else:
        model.optimizer.torch_autocast_gradscaler = None


def reduce_what_the_last_pass_left(zero: Any) -> None:
    """Have ZeRO 1 sum every gradient of a step: where it overlaps that with the last micro-batch's backward pass, it
    takes what this one makes, and would leave out a weight that only those before it have read."""
    if not zero.overlap_comm:
        return
    own = zero.reduce_gradients

    def reduce_gradients(*args: Any, **kwargs: Any) -> None:
        zero.reduce_ipg_grads()  # with which it knows what has been summed
        for index, group in enumerate(zero.bit16_groups):
            for weight in group:
                is_left = not zero.params_already_reduced[zero.get_param_id(weight)]
                if is_left and zero.get_gradient_for_reduction(weight) is not None:
                    zero.reduce_ready_partitions_and_remove_grads(weight, index)
        own(*args, **kwargs)

    zero.reduce_gradients = reduce_gradients

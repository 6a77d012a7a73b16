"""Which weights a ZeRO engine trains, and where it keeps them, as DeepSpeed's optimizer tells."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.optim import Optimizer

from alignment.config.errors import UserError
from alignment.distributed.engine import load_optimizer
from alignment.distributed.reshard import Groups


def trained_groups(stage: int, zero: Any, optimizer: Optimizer, module: nn.Module) -> Groups:
    """`zero`: DeepSpeed's wrapping of `optimizer`, whose groups no longer name the weights from stage 1 on."""
    names = {id(p): name for name, p in module.named_parameters()}
    if stage == 0:
        return [{names[id(p)]: p.shape for p in group["params"]} for group in optimizer.param_groups]
    if stage < 3:
        return [{names[id(p)]: p.shape for p in group} for group in zero.bit16_groups]
    groups: list[dict[str, Size]] = [{} for _ in optimizer.param_groups]
    for number, group in enumerate(zero.fp16_groups):
        groups[zero.sub_group_to_group_id[number]] |= {names[id(p)]: p.ds_shape for p in group}
    return groups


def offsets_and_shapes(stage: int, zero: Any, groups: Groups) -> dict[str, Any]:
    """`shapes` [group][weight], and under stages 1 and 2 `offsets` [group][weight], in elements: by DeepSpeed's own
    settings a group's weights may stand in another order (round_robin_gradients) or apart (parameter_alignment)."""
    offsets = []
    if stage in (1, 2):
        laid = zip(zero.bit16_groups, zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, strict=True)
        for group, in_place, starts in laid:
            start_of = {id(p): start for p, start in zip(in_place, starts, strict=True)}
            offsets.append([start_of[id(p)] for p in group])
    return {"shapes": [[list(shape) for shape in group.values()] for group in groups], "offsets": offsets}


@contextmanager
def filled(zero: Any) -> Iterator[None]:
    """Inside, the optimizer's groups name their weights, which ZeRO 3 fills in only while it steps."""
    zero._set_fp32_optimizer_param_groups()
    try:
        yield
    finally:
        zero._clear_fp32_optimizer_param_groups()


def held(stage: int, zero: Any, optimizer: Optimizer) -> list[Tensor]:
    """What this process has of the float32 weights, numbered as the optimizer numbers its states."""
    if stage == 0:
        return [p for group in optimizer.param_groups for p in group["params"]]
    return list(zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups)


def forget(stage: int, zero: Any, optimizer: Optimizer, begun: Sequence[nn.Parameter]) -> None:
    """As the engine's protocol says. The float32 weights that ZeRO 1 to 3 update become what the model now has."""
    parts = [[p] for p in begun] if stage == 0 else zero.fp16_groups if stage == 3 else zero.bit16_groups
    flats = begun if stage == 0 else held(stage, zero, optimizer)
    if stage != 0:
        zero.refresh_fp32_params()
    wanted = {id(p) for p in begun}
    for flat, group in zip(flats, parts, strict=True):
        if any(id(p) in wanted for p in group):
            assert all(id(p) in wanted for p in group), "a group of the optimizer has weights that do not begin anew"
            optimizer.state.pop(flat, None)


@torch.no_grad()
def load_shard(stage: int, zero: Any, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """This process's weights and states, as it has saved them.

    Raises:
        UserError: they are of another model.
    """
    own = held(stage, zero, optimizer)
    if stage == 0:
        copy_into(own, state["weights"])
        load_optimizer(optimizer, state["optimizer"])
    elif stage == 3:
        zero._partition_all_parameters()
        with filled(zero):
            load_optimizer(optimizer, state["optimizer"])
        copy_into(own, state["weights"])
        for index in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        zero._post_step(set())  # small weights stay whole everywhere: they are gathered again
    else:
        copy_into(own, state["weights"])
        load_optimizer(optimizer, state["optimizer"])
        zero.update_lp_params()


def copy_into(own: list[Tensor], saved: list[Tensor]) -> None:
    """Raises:
    UserError: they are of another model.
    """
    if [tensor.shape for tensor in saved] != [tensor.shape for tensor in own]:
        raise UserError("the checkpoint's weights are not this model's: their shapes differ")
    for source, target in zip(saved, own, strict=True):
        target.data.copy_(source)

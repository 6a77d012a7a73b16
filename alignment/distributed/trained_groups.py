"""Which weights a ZeRO engine trains, and where it keeps them, as DeepSpeed's optimizer tells."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Size, Tensor, nn
from torch.optim import Optimizer

from alignment.config.errors import UserError
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


def copy_into(own: list[Tensor], saved: list[Tensor]) -> None:
    """Raises:
    UserError: they are of another model.
    """
    if [tensor.shape for tensor in saved] != [tensor.shape for tensor in own]:
        raise UserError("the checkpoint's weights are not this model's: their shapes differ")
    for source, target in zip(saved, own, strict=True):
        target.data.copy_(source)

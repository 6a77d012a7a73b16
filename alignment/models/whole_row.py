"""flex_attention over a whole row, with the branch rule as a block mask: one compiled kernel, for a GPU.

The mask is made once for a batch, and once for each kind of layer; blocks of 128 by 128 tokens in which nobody sees
anybody are skipped. A compiled kernel is one for a length, so that rows come in few lengths. It takes any precision,
caps and sinks in its scores, heads of any size but the smallest.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import pad
from transformers import PreTrainedConfig

from alignment.data.pack import PADDING, Batch
from alignment.models.branches import branch_rule
from alignment.models.layer_kinds import head_sizes

DEVICES = ("cuda",)  # that compile it
SMALLEST = 16  # numbers of a head that the compiled kernel takes


def serves_row(config: PreTrainedConfig, device: torch.device) -> bool:
    """Whether the compiled kernel takes a model's heads."""
    return device.type in DEVICES and min(head_sizes(config)) >= SMALLEST


def block_mask(batch: Batch, window: int | None) -> BlockMask:
    """Of the one row of a batch in the shared layout."""
    length = batch.input_ids.shape[1]
    return create_block_mask(
        branch_rule(batch, window), 1, None, length, length, device=str(batch.input_ids.device), _compile=False
    )


def in_fixed_lengths(batch: Batch) -> Batch:
    """The batch with its one row made as long as the next of few lengths, at most an eighth longer (and a multiple of
    128), so that a compiled kernel meets few shapes. What points into the row still points to the same tokens."""
    length = batch.input_ids.shape[1]
    unit = max(128, 2 ** (length - 1).bit_length() // 16)
    extra = -length % unit
    if extra == 0:
        return batch

    def grown(ids: Tensor, value: int) -> Tensor:
        return pad(ids, (0, extra), value=value)

    return replace(
        batch,
        input_ids=grown(batch.input_ids, 0),
        position_ids=grown(batch.position_ids, 0),
        groups=grown(batch.groups, PADDING),
        branches=grown(batch.branches, 0),
    )

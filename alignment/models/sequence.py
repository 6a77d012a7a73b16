"""Rows whose tokens several processes share (DeepSpeed Ulysses, Jacobs et al. arXiv:2309.14509).

    own tokens, all heads  ->  all tokens, own heads  ->  attention  ->  own tokens, all heads

Each process of a group takes as many tokens of each row, one after the other, the last ones with padding behind, and
runs the model on these, at their positions in the text. Attention alone must see the others': before it queries, keys
and values are exchanged in one all-to-all, and its outputs in another one, so that each process attends with its share
of the heads to whole rows, in the way that a single process does. A read-out is made of own tokens and summed.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alignment.config.errors import ConfigError
from alignment.data.pack import PADDING, Batch
from alignment.distributed.sequence import SequenceGroup, sequence_group
from alignment.models.attention import AUTO, FLEX, GROUPED
from alignment.models.layer_kinds import FULL, SLIDING, layer_kinds, sliding_window

OF_HEADS = ("s_aux", "position_bias")
"""What some architectures give their attention for each of their heads."""
KEY = "distributed.sequence_parallel"


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens of a batch's rows that are this process's: S of the L of each row, padding included."""

    group: SequenceGroup
    length: int
    """L."""
    is_plain: bool = False
    """Each row is one text, which needs no mask where a layer is given an empty one."""

    @property
    def size(self) -> int:
        """S."""
        return -(-self.length // self.group.size)

    def own(self, ids: Tensor) -> Tensor:
        """[R, L] -> [R, S], with zeros behind the rows."""
        return pad(ids, (0, self.size * self.group.size - self.length)).chunk(self.group.size, dim=1)[self.group.rank]

    def places(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[T] of whole rows laid end to end -> which of the T are own [t], and where they are in own rows laid end to
        end [t]."""
        row, column = positions // self.length, positions % self.length
        places = (column // self.size == self.group.rank).nonzero()[:, 0]
        return places, (row * self.size + column % self.size)[places]

    def together(self, own: Tensor, places: Tensor, number: int) -> Tensor:
        """What each process has read at its places, [t, ...] -> [number, ...], on all of the group."""
        whole = own.new_zeros(number, *own.shape[1:])
        return self.group.summed(whole.index_copy(0, places, own))

    def of_tokens(self, own: Tensor) -> Tensor:
        """What each process has of its rows' tokens, [R * S, ...] -> [R * L, ...], on all of the group."""
        rows, whole = own.view(-1, self.size, *own.shape[1:]), self.size * self.group.size
        columns = torch.arange(self.size, device=own.device) + self.group.rank * self.size
        places = (torch.arange(len(rows), device=own.device)[:, None] * whole + columns).flatten()
        return (
            self.together(own, places, len(rows) * whole)
            .view(-1, whole, *own.shape[1:])[:, : self.length]
            .flatten(0, 1)
        )

    def to_heads(self, *parts: Tensor) -> list[Tensor]:
        """Queries, keys and values of own tokens [R, heads, S, D] -> of own heads [R, heads / size, L, D]. Heads that
        are fewer than the processes, or not evenly as many, are repeated."""
        size = self.group.size
        split = [_repeated(part, size).unflatten(1, (size, -1)).transpose(0, 1) for part in parts]
        sent = torch.cat([part.flatten(1) for part in split], dim=1)
        received = self.group.exchanged(sent).split([part[0].numel() for part in split], dim=1)
        pairs = zip(received, split, strict=True)  # [size, R, heads / size, S, D]: the k-th has the k-th tokens
        whole = [own.reshape(part.shape).permute(1, 2, 0, 3, 4).flatten(2, 3) for own, part in pairs]
        return [part[:, :, : self.length].contiguous() for part in whole]

    def to_tokens(self, output: Tensor) -> Tensor:
        """Outputs of own heads [R, L, heads / size, D] -> of own tokens [R, S, heads, D]."""
        size = self.group.size
        padded = pad(output, (0, 0, 0, 0, 0, self.size * size - self.length))
        received = self.group.exchanged(padded.unflatten(1, (size, self.size)).transpose(0, 1))
        return received.permute(1, 2, 0, 3, 4).flatten(2, 3)  # from [size, R, S, heads / size, D]


def _repeated(part: Tensor, size: int) -> Tensor:
    """[R, heads, S, D], each head as often as it takes for `size` to divide them."""
    times = size // gcd(size, part.shape[1])
    return part if times == 1 else part.repeat_interleave(times, dim=1)


def part_of(batch: Batch) -> Part | None:
    """None where each process has rows of its own."""
    group = sequence_group()
    return None if group is None else Part(group, batch.input_ids.shape[1])


def part_inputs(part: Part, batch: Batch, config: PreTrainedConfig, whole: dict[str, Any]) -> dict[str, Any]:
    """What the model's body takes for a part beside token and position ids; `whole`: what it would for whole rows."""
    if batch.shared:
        return whole | {"sequence_part": part}
    is_sdpa = config._attn_implementation in (GROUPED["sdpa"], AUTO["sdpa"])

    def make(window: int | None) -> Tensor:
        is_wide = window is None or part.length <= window
        return torch.ones(1, 1, 1, 0, dtype=torch.bool) if is_sdpa and is_wide else _row_mask(batch, window)

    kinds = set(layer_kinds(config))
    masks = {FULL: make(None), SLIDING: make(sliding_window(config) if SLIDING in kinds else None)}
    mask = masks if len(kinds) > 1 else masks[SLIDING]  # in place of one that transformers would make, of own tokens
    return {"attention_mask": mask, "sequence_part": replace(part, is_plain=True)}


def _row_mask(batch: Batch, window: int | None) -> Tensor:
    """[R, 1, L, L] bool, True = sees: of a text that has its row for itself."""
    positions = batch.position_ids
    distance = positions[:, :, None] - positions[:, None, :]
    order = torch.arange(positions.shape[1], device=positions.device)
    sees = (order[:, None] >= order) & (batch.groups != PADDING)[:, None, :]
    return (sees if window is None else sees & (distance < window))[:, None]


def require_heads(config: PreTrainedConfig, size: int) -> None:
    """Raises:
    ConfigError: the heads of a model cannot be shared out among so many processes.
    """
    text = config.get_text_config()
    heads = text.to_dict().get(text.attribute_map.get("num_attention_heads", "num_attention_heads"))
    if size > 1 and (not isinstance(heads, int) or heads % size):
        what = f"{config.model_type}, which has " + (f"{heads}" if heads else "none")
        raise ConfigError(f"{KEY} must divide the number of attention heads of the model ({what}), got {size}")


def _by_heads(attend: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The same attention, which is told of a `sequence_part` where own tokens alone are there."""

    def attend_to_all(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        *,
        sequence_part: Part | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if sequence_part is None:
            return attend(module, query, key, value, mask, **settings)
        heads, size = query.shape[1], sequence_part.group.size
        if heads % size:
            raise ConfigError(f"{KEY} must divide the {heads} heads of {type(module).__name__}, got {size}")
        if added := [name for name in OF_HEADS if settings.get(name) is not None]:
            raise ConfigError(f"{KEY} must be 1 for {type(module).__name__}, whose heads have a {added[0]}, got {size}")
        if sequence_part.is_plain and not mask.numel():
            mask = None
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        q, k, v = sequence_part.to_heads(*(part.to(dtype) for part in (query, key, value)))
        output, _ = attend(_for_heads(module, q, k), q, k, v, mask, **settings)
        return sequence_part.to_tokens(output), None

    return attend_to_all


def _for_heads(module: nn.Module, query: Tensor, key: Tensor) -> nn.Module:
    """The layer, where it says how many queries' heads a key's has: as many as these, of which keys may be repeated."""
    ratio = query.shape[1] // key.shape[1]
    if vars(module).get("num_key_value_groups", ratio) == ratio:
        return module
    twin = copy(module)
    vars(twin)["num_key_value_groups"] = ratio
    return twin


for name in (*GROUPED.values(), *AUTO.values(), FLEX):
    AttentionInterface.register(name, _by_heads(ALL_ATTENTION_FUNCTIONS[name]))

"""Attention over all texts of a packed row in one call a layer: torch's varlen attention, flash kernels of a GPU.

A text is a prompt with one of its completions. The prompt and the first completion are one sequence, of queries and of
keys; each other completion is one whose queries are its own tokens and whose keys are the prompt's and its own. Queries
lie in the order of the row. Causality is counted from a sequence's end, so that a completion's first token sees the
whole prompt, and a window counts in the text's own positions. The kernel takes fewer heads of keys than of queries as
they are.

The keys and values of a prompt are copied for each completion but the first, in each layer, and kept for the backward
pass: (n - 1) * prompt * heads of keys * head size * 4 bytes in half precision, n completions. Of a Llama 3 of 8 billion
weights, a prompt of 1,024 tokens with 8 completions of 256, that is 29 MB a layer beside some 600 MB of other
activations; with one completion, nothing. Attention to the prompt in a call of its own (two_calls.py) copies no key and
keeps nothing more, and writes the queries of those completions anew. `takes_two_calls` counts which writes less.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad
from transformers import PreTrainedConfig

from alignment.config.errors import ConfigError
from alignment.data.pack import Batch
from alignment.models.layer_kinds import SLIDING, head_size, head_sizes, layer_kinds, sliding_window
from alignment.models.two_calls import Parts, merged_attention, parts_of

DEVICES = ("cuda",)  # that have the kernel
DTYPES: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)  # that it takes
LARGEST, MULTIPLE = 256, 8  # head sizes that it takes, in numbers
NOT_HERE = ("softcap", "s_aux", "position_bias")  # what some architectures add to their scores, and the kernel does not

CALL = 2**26
"""Bytes that a GPU writes and reads back (3 TB/s) in 40 microseconds, which the dozen operations more of a second call
take, forward and backward. Arithmetic, not measured."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """S sequences, whose queries lie end to end in the row [L] and whose keys end to end in [K], gathered from it."""

    query_ends: Tensor  # [S + 1] int32, where each sequence's queries begin, and the end
    key_ends: Tensor  # [S + 1] int32, likewise of keys
    longest: tuple[int, int]  # queries and keys of a sequence
    keys: Tensor | None  # [K] int32, the token of the row that each key is; None: the row as it is
    own: Tensor  # [L] int32, the first key that each token of the row is
    prompts: Tensor  # [U] int32, the prompts' tokens
    copies: Tensor  # [U, n - 1] int32, the other keys that each of these is


@dataclass(frozen=True, slots=True)
class Ways:
    """How the layers of a model attend to one batch: those that see all, and those that slide."""

    gathered: Sequences | None  # of those that slide, and of all where there are no `parts`
    parts: Parts | None  # of those that see all, where two calls are cheaper


def serves(config: PreTrainedConfig, device: torch.device) -> bool:
    """Whether the kernel takes a model's heads in what its forwards compute in now: under autocast, half precision."""
    kind = device.type
    if kind not in DEVICES:
        return False
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    return dtype in DTYPES and max(head_sizes(config)) <= LARGEST


def ways_of(batch: Batch, config: PreTrainedConfig) -> Ways:
    """What the layers of a model need of a batch in the shared layout, made once for all of them."""
    kinds = set(layer_kinds(config)) if hidden_window(sliding_window(config), batch) else set()
    if kinds != {SLIDING} and takes_two_calls(batch, config):
        return Ways(sequences_of(batch) if SLIDING in kinds else None, parts_of(batch))
    return Ways(sequences_of(batch), None)


def takes_two_calls(batch: Batch, config: PreTrainedConfig) -> bool:
    """Whether a layer that sees all is done sooner if its prompts have a call of their own."""
    gathered, apart = written(batch, config)
    return batch.replies > 1 and gathered - apart > CALL


def written(batch: Batch, config: PreTrainedConfig) -> tuple[int, int]:
    """Bytes that a layer writes, forward and backward, beside what both ways do: gathered, and in two calls. Of two
    completions a prompt or more: of one nothing is copied.

    A head of half precision is 2 * size bytes. Gathered, each head of keys takes of each token of the row and of each
    copy its key, value, their gradients and these picked, 6; of each of the prompts' tokens the sums of gradients:
    picked, in float32, of copies, of all, rounded and put in place, 18. In two calls each head of keys takes of each
    token the gradients, 2, and of each of the prompts' key and value, again backward, their gradients, the first
    call's, sums, and these put in place, 12; and each head of queries of each token of a later completion, forward, its
    query and output, the first call's, the mean in float32 twice, rounded and put in place, 9, and backward its
    gradient, query, output, and of its query's gradient the part, the first call's, the sum and that put in place, 7.
    """
    lengths = np.array(batch.branch_lengths)  # [G, 1 + n]
    prompts, later, copies = lengths[:, 0].sum(), lengths[:, 2:].sum(), lengths[:, 0].sum() * (batch.replies - 1)
    heads, settings = config.num_attention_heads, config.to_dict()
    of_keys = settings.get("num_key_value_heads") or heads
    size = 2 * (settings.get("head_dim") or head_size(config))
    gathered = (6 * (lengths.sum() + copies) + 18 * prompts) * of_keys
    return int(gathered * size), int(((2 * lengths.sum() + 12 * prompts) * of_keys + 16 * later * heads) * size)


def hidden_window(window: int | None, batch: Batch) -> int | None:
    """The window where it hides something of a batch's texts; None where they are all shorter."""
    longest = max(prompt + max(completions) for prompt, *completions in batch.branch_lengths)
    return None if window is None or window >= longest else window


def sequences_of(batch: Batch) -> Sequences:
    """Those of a batch in the shared layout, on its device, to which all indices go in one copy."""
    lengths = np.array(batch.branch_lengths)  # [G, 1 + n]
    prompts, completions = lengths[:, 0], lengths[:, 1:]
    groups, replies = completions.shape
    begins = _begins(lengths.sum(1))[:-1]  # [G], in the row
    branches = begins[:, None] + prompts[:, None] + np.cumsum(completions, 1) - completions  # [G, n], in the row
    queries, keys = completions.copy(), completions + prompts[:, None]
    queries[:, 0] += prompts
    key_ends = _begins(keys.ravel())

    def each(of_sequences: np.ndarray) -> np.ndarray:
        """[G, n] -> [K]"""
        return np.repeat(of_sequences.ravel(), keys.ravel())

    place = np.arange(key_ends[-1]) - each(key_ends[:-1])
    is_prompt = place < each(np.repeat(prompts, replies))
    shift = np.where(is_prompt, each(np.repeat(begins, replies)), each(branches - prompts[:, None]))
    is_copy = is_prompt & each(np.tile(np.arange(replies) > 0, groups))
    group = np.repeat(np.arange(groups), prompts)  # [U]
    within = np.arange(len(group)) - np.repeat(_begins(prompts)[:-1], prompts)
    copies = key_ends[:-1].reshape(groups, replies)[group, 1:] + within[:, None]
    parts = [
        _begins(queries.ravel()),
        key_ends,
        place + shift,
        np.flatnonzero(~is_copy),
        begins[group] + within,
        copies.ravel(),
    ]
    together = torch.from_numpy(np.concatenate(parts).astype(np.int32))
    split = together.to(batch.input_ids.device, non_blocking=True).split([len(part) for part in parts])
    query_ends, ends, index, own, of_prompts, of_copies = split
    return Sequences(
        query_ends,
        ends,
        (int(queries.max()), int(keys.max())),
        None if replies == 1 else index,
        own,
        of_prompts,
        of_copies.view(copies.shape),
    )


def _begins(lengths: np.ndarray) -> np.ndarray:
    """Where each of the runs begins, and the end."""
    return np.concatenate([[0], np.cumsum(lengths)])


def window_mark(window: int | None) -> Tensor:
    """What a layer is given as its mask, [1, 1, 1, window], or [1, 1, 1, 0] where it sees all: the model hands each of
    its layers the one for its kind, and a number on a device would have to be waited for."""
    return torch.zeros(()).expand(1, 1, 1, window or 0)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mark: Tensor,
    ways: Ways,
    *,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, L, D], key and value [1, heads of keys, L, D or another size] -> [1, L, heads, size of values].

    Raises:
        ConfigError: the layer adds something to its scores that the kernel has no place for.
    """
    if added := [name for name in NOT_HERE if settings.get(name) is not None]:
        what = f"{type(module).__name__} gives {added[0]}, which attention in one call a layer has no place for"
        raise ConfigError(f"model.attention must be eager or sdpa where a {what}, got 'auto'")
    kind, size, width = query.device.type, query.shape[-1], value.shape[-1]
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    room = -(-max(size, width) // MULTIPLE) * MULTIPLE
    q, k, v = (_laid_out(part, dtype, room) for part in (query, key, value))
    scale, window = size**-0.5 if scaling is None else scaling, mark.shape[-1]
    if ways.parts is not None and not window:
        return merged_attention(q, k, v, ways.parts, scale)[None, ..., :width], None
    assert ways.gathered is not None
    return gathered_attention(q, k, v, ways.gathered, scale, window)[None, ..., :width], None


def gathered_attention(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, scale: float, window: int) -> Tensor:
    """As two_calls.merged_attention; a window of 0 hides nothing."""
    if sequences.keys is not None:
        k, v = _Gathered.apply(k, sequences), _Gathered.apply(v, sequences)
    out = varlen_attn(
        q,
        k,
        v,
        sequences.query_ends,
        sequences.key_ends,
        *sequences.longest,
        scale=scale,
        window_size=(window - 1, 0) if window else (-1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


def _laid_out(part: Tensor, dtype: torch.dtype, room: int) -> Tensor:
    """[1, heads, L, D] -> [L, heads, room], with zeros behind."""
    part = part[0].transpose(0, 1).to(dtype)
    return part if part.shape[-1] == room else pad(part, (0, room - part.shape[-1]))


class _Gathered(torch.autograd.Function):
    """[L, ...] -> [K, ...]. The gradients of a prompt's copies are summed in float32, in one order: index_add would
    round after each of them, in the order in which a GPU comes to them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sequences: Sequences) -> Tensor:
        assert sequences.keys is not None
        ctx.sequences = sequences
        return values.index_select(0, sequences.keys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        own, prompts, copies = ctx.sequences.own, ctx.sequences.prompts, ctx.sequences.copies
        gathered = gradient.index_select(0, own)
        of_copies = gradient.index_select(0, copies.flatten()).view(*copies.shape, *gradient.shape[1:])
        exact = torch.promote_types(gradient.dtype, torch.float32)
        summed = gathered.index_select(0, prompts).to(exact) + of_copies.sum(1, dtype=exact)
        return gathered.index_copy_(0, prompts.long(), summed.to(gradient.dtype)), None

"""The attention that keeps to the branch rule (branches.py), and the masks that it is given.

Tokens of different groups never see each other, so attention goes group by group, each as long as it is: its cost is
the sum of the groups' squares, and no row is padded. A prompt and its first completion are one plain causal text, which
sdpa's fastest kernels take without a mask and at half that cost; in a long group only the other completions need one.

A GPU would wait for all those calls: `kernel_of` says what it takes instead where nothing else is asked for. Last of
all it goes group by group too, without cuDNN's sdpa, which would plan each call anew (distributed/device.py).
"""

import sys
from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from alignment.data.pack import Batch
from alignment.models.branches import branch_rule
from alignment.models.layer_kinds import FULL, SLIDING, layer_kinds, sliding_window
from alignment.models.varlen import Ways, attend, hidden_window, serves, ways_of, window_mark
from alignment.models.whole_row import block_mask, in_fixed_lengths, serves_row

GROUPED = {"sdpa": "grouped_sdpa", "eager": "grouped_eager"}
"""An attention of transformers, and the name of the same one group by group."""
AUTO = {"sdpa": "auto_sdpa", "eager": "auto_eager"}
"""And that of the same one where it may be another on a GPU."""
FLEX = "flex_attention"

LONG = 512
"""Tokens of a group from which two calls of sdpa, one of them without a mask, take less time than one."""

Mask = Tensor | BlockMask
Attend = Callable[..., tuple[Tensor, Tensor | None]]


class Kernel(Enum):
    """What takes all texts of a batch in the shared layout."""

    one_call = auto()  # a layer, or two: torch's varlen attention (varlen.py)
    whole_row = auto()  # flex_attention (whole_row.py)
    by_group = auto()  # sdpa, or the architecture's own


def kernel_of(config: PreTrainedConfig, device: torch.device) -> Kernel:
    """The one place that chooses. On a GPU varlen attention in half precision; flex_attention where it cannot serve
    (float32, heads above 256), and where an architecture puts a cap or a sink into its scores; else group by group."""
    chosen = config._attn_implementation
    if chosen == FLEX:
        return Kernel.whole_row
    if chosen == AUTO["sdpa"] and serves(config, device):
        return Kernel.one_call
    return Kernel.whole_row if chosen in AUTO.values() and serves_row(config, device) else Kernel.by_group


def group_masks(batch: Batch, window: int | None = None, plain: Sequence[int] | None = None) -> Tensor:
    """[1, 1, 1, sum over groups of (length - plain) * length] bool, flattened; True = sees.

    Of each group's [length, length] mask the rows after the first `plain`, which are plain causal text; None: all rows.
    """
    sees = branch_rule(batch, window)
    order = torch.arange(sum(batch.group_lengths), device=batch.input_ids.device)
    spans = zip(order.split(list(batch.group_lengths)), plain or [0] * len(batch.group_lengths), strict=True)
    masks = [sees(0, 0, s[start:, None], s[None, :]).flatten() for s, start in spans if start < len(s)]
    return torch.cat([torch.ones(0, dtype=torch.bool, device=order.device), *masks])[None, None, None]


def plain_rows(batch: Batch) -> tuple[int, ...]:
    """How many rows of each group sdpa is given as plain causal text: all where there is one completion, the prompt's
    and first completion's in a long group, none in a short one."""
    lengths = zip(batch.plain_lengths, batch.group_lengths, strict=True)
    return tuple(plain if plain == length or length >= LONG else 0 for plain, length in lengths)


def attention_inputs(batch: Batch, config: PreTrainedConfig) -> dict[str, Any]:
    """What the model's body takes beside token and position ids: `attention_mask`, and where attention goes group by
    group its `group_lengths` and `plain_rows`, where it takes all groups in one call or two its `ways`, and where it
    takes the row its `rows`, a block mask for each window. For a model whose layers differ, one mask for each kind.

    In the separate layout none: padding stands behind a row's text, which never looks there, and what padding itself
    sees is never read. A mask would keep sdpa from its fastest kernels, and a GPU waiting while it is looked through.
    """
    if not batch.shared:
        return {"attention_mask": None}
    kernel = kernel_of(config, batch.input_ids.device)
    if config._attn_implementation == FLEX:  # transformers' own
        return {"attention_mask": _by_kind(config, partial(block_mask, batch))}
    if kernel is not Kernel.by_group:
        marks = _by_kind(config, lambda window: window_mark(hidden_window(window, batch)))
        if kernel is Kernel.one_call:
            return {"attention_mask": marks, "ways": ways_of(batch, config)}
        windows = {mark.shape[-1] for mark in (marks.values() if isinstance(marks, dict) else [marks])}
        return {"attention_mask": marks, "rows": {window: block_mask(batch, window or None) for window in windows}}
    plain = plain_rows(batch)
    is_sdpa = config._attn_implementation in (GROUPED["sdpa"], AUTO["sdpa"])

    def make(window: int | None) -> Tensor:
        is_wide = window is None or max(batch.group_lengths) <= window
        return group_masks(batch, window, plain if is_wide and is_sdpa else None)

    return {"attention_mask": _by_kind(config, make), "group_lengths": batch.group_lengths, "plain_rows": plain}


def laid_out(batch: Batch, config: PreTrainedConfig) -> Batch:
    """As the model's attention takes it."""
    is_row = batch.shared and kernel_of(config, batch.input_ids.device) is Kernel.whole_row
    return in_fixed_lengths(batch) if is_row else batch


def _by_kind(config: PreTrainedConfig, make: Callable[[int | None], Mask]) -> Mask | dict[str, Mask]:
    """What `make` makes of the window of a model's layers, or of that of each kind of layer where they differ."""
    window, kinds = sliding_window(config), set(layer_kinds(config))
    if kinds == {FULL, SLIDING}:
        return {FULL: make(None), SLIDING: make(window)}
    return make(window if kinds == {SLIDING} else None)


def choose_attention(hf: PreTrainedModel) -> None:
    """Leave it to a batch and its device how a model attends, where no one has asked for a way of their own."""
    chosen = AUTO.get(hf.config._attn_implementation)
    serves_gpu = hf.config._attn_implementation != "eager" or hf._supports_flex_attn
    if chosen is not None and hf._supports_attention_backend and serves_gpu:
        hf.set_attn_implementation(chosen)


def use_grouped_attention(hf: PreTrainedModel) -> None:
    """Let the model attend group by group where a batch asks for it, and as before where it does not."""
    grouped = GROUPED.get(hf.config._attn_implementation)
    if grouped is not None and hf._supports_attention_backend:
        hf.set_attn_implementation(grouped)


def _grouped_sdpa(module: nn.Module, *inputs: Any, **settings: Any) -> tuple[Tensor, Tensor | None]:
    return _by_group(sdpa_attention_forward, module, *inputs, **settings)


def _grouped_eager(module: nn.Module, *inputs: Any, **settings: Any) -> tuple[Tensor, Tensor | None]:
    return _by_group(_eager, module, *inputs, **settings)


def _auto_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    return _auto(_grouped_sdpa, module, query, key, value, mask, **settings)


def _auto_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    return _auto(_grouped_eager, module, query, key, value, mask, **settings)


def _auto(
    grouped: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    ways: Ways | None = None,
    rows: dict[int, BlockMask] | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """As `attention_inputs` has chosen. The mask is a layer's mark where that is not by group: some architectures ask
    theirs for what a block mask has not."""
    if ways is not None:
        assert mask is not None
        return attend(module, query, key, value, mask, ways, **settings)
    if rows is None:
        return grouped(module, query, key, value, mask, **settings)
    assert mask is not None
    found: tuple[Tensor, Tensor | None] = flex_attention_forward(
        module, query, key, value, rows[mask.shape[-1]], **settings
    )
    return found


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """The architecture's own attention, which transformers keeps beside its layers under one name; it adds its mask."""
    own = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    return own(module, query, key, value, mask, **settings)


def _by_group(
    attend: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    group_lengths: tuple[int, ...] | None = None,
    plain_rows: tuple[int, ...] = (),
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """query, key, value: [1, heads, L, D], the row's groups end to end; attention_mask: see `group_masks`.

    Without `group_lengths` it is `attend` itself: generation, and the separate layout.
    """
    if group_lengths is None:
        return attend(module, query, key, value, attention_mask, **settings)
    assert attention_mask is not None
    if attention_mask.numel() == sum(length**2 for length in group_lengths):  # of a window, or for eager: every row
        plain_rows = (0,) * len(group_lengths)
    sizes = [(length - plain) * length for length, plain in zip(group_lengths, plain_rows, strict=True)]
    spans = (part.split(group_lengths, dim=2) for part in (query, key, value))
    causal, outputs = settings | {"is_causal": True}, []
    for q, k, v, plain, mask in zip(*spans, plain_rows, attention_mask.flatten().split(sizes), strict=True):
        if plain:
            outputs.append(attend(module, q[:, :, :plain], k[:, :, :plain], v[:, :, :plain], None, **causal)[0])
        if plain < q.shape[2]:
            outputs.append(attend(module, q[:, :, plain:], k, v, mask.view(1, 1, -1, q.shape[2]), **settings)[0])
    return torch.cat(outputs, dim=1), None  # [1, L, heads, D]


for name, attention, mask in (
    (GROUPED["sdpa"], _grouped_sdpa, sdpa_mask),
    (GROUPED["eager"], _grouped_eager, eager_mask),
    (AUTO["sdpa"], _auto_sdpa, sdpa_mask),
    (AUTO["eager"], _auto_eager, eager_mask),
):
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)

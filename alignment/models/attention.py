"""The branch mask: who sees whom in a packed row, and the attention that keeps to it.

A query sees a key that is not after it, of the same group, and in the prompt or in its own branch. With a sliding
window the distance is that of the position ids, which is the distance within the branch's own text.

Tokens of different groups never see each other, so attention goes group by group, each as long as it is: its cost is
the sum of the groups' squares, and no row is padded. A prompt and its first completion are one plain causal text, which
sdpa's fastest kernels take without a mask and at half that cost; in a long group only the other completions need one.
(flex_attention takes the whole row with the same rule as a block mask instead.)
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from alignment.config.errors import ConfigError
from alignment.data.pack import PADDING, Batch

FULL, SLIDING = "full_attention", "sliding_attention"
GROUPED = {"sdpa": "grouped_sdpa", "eager": "grouped_eager"}
"""An attention of transformers, and the name of the same one group by group."""
FLEX = "flex_attention"

LONG = 512
"""Tokens of a group from which two calls of sdpa, one of them without a mask, take less time than one."""

Mask = Tensor | BlockMask
Sees = Callable[[Any, Any, Tensor, Tensor], Tensor]


def branch_rule(batch: Batch, window: int | None = None) -> Sees:
    """(batch, head, query, key) -> bool, in the form of a flex_attention mask; indices are into the one row."""
    groups, branches, positions = batch.groups[0], batch.branches[0], batch.position_ids[0]

    def sees(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
        is_seen = (query >= key) & (groups[query] == groups[key])
        is_seen = is_seen & ((branches[key] == 0) | (branches[query] == branches[key]))
        if window is not None:
            is_seen = is_seen & (positions[query] - positions[key] < window)
        return is_seen

    return sees


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
    group its `group_lengths` and `plain_rows`. For a model whose layers differ, one mask for each kind of layer.

    In the separate layout [R, L] bool, which every architecture takes.
    """
    if not batch.shared:
        return {"attention_mask": batch.groups != PADDING}
    is_flex = config._attn_implementation == FLEX
    window, kinds, plain = sliding_window(config), set(layer_kinds(config)), plain_rows(batch)

    def make(batch: Batch, window: int | None) -> Mask:
        if is_flex:
            return _block_mask(batch, window)
        is_wide = window is None or max(batch.group_lengths) <= window
        return group_masks(batch, window, plain if is_wide and config._attn_implementation == GROUPED["sdpa"] else None)

    if kinds == {FULL, SLIDING}:
        mask: Mask | dict[str, Mask] = {FULL: make(batch, None), SLIDING: make(batch, window)}
    else:
        mask = make(batch, window if kinds == {SLIDING} else None)
    if is_flex:
        return {"attention_mask": mask}
    return {"attention_mask": mask, "group_lengths": batch.group_lengths, "plain_rows": plain}


def _block_mask(batch: Batch, window: int | None) -> BlockMask:
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

    def grown(ids: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(ids, (0, extra), value=value)

    return replace(
        batch,
        input_ids=grown(batch.input_ids, 0),
        position_ids=grown(batch.position_ids, 0),
        groups=grown(batch.groups, PADDING),
        branches=grown(batch.branches, 0),
    )


def use_grouped_attention(hf: PreTrainedModel) -> None:
    """Let the model attend group by group where a batch asks for it, and as before where it does not."""
    grouped = GROUPED.get(hf.config._attn_implementation)
    if grouped is not None and hf._supports_attention_backend:
        hf.set_attn_implementation(grouped)


def _grouped_sdpa(module: nn.Module, *inputs: Any, **settings: Any) -> tuple[Tensor, Tensor | None]:
    return _by_group(sdpa_attention_forward, module, *inputs, **settings)


def _grouped_eager(module: nn.Module, *inputs: Any, **settings: Any) -> tuple[Tensor, Tensor | None]:
    return _by_group(_eager, module, *inputs, **settings)


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """The architecture's own attention, which transformers keeps beside its layers under one name; it adds its mask."""
    own = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    return own(module, query, key, value, mask, **settings)


def _by_group(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
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


def check_branches(hf: PreTrainedModel) -> None:
    """What the shared layout asks of an architecture: it is told its positions, and its mask says all that is seen.

    Recurrent layers see whatever stands before them; attention of an architecture's own making may measure distance in
    the row (ALiBi, GPT-Neo's local layers) or read the mask in a form of its own.

    Raises:
        ConfigError: the architecture does not promise that.
    """
    leave_with_launcher = "position_ids" in inspect.signature(hf.base_model.forward).parameters
    if not leave_with_launcher or hf._is_stateful or not hf._supports_attention_backend:
        name = type(hf).__name__
        raise ConfigError(f"batch.layout must be separate for this architecture, got 'shared' for {name}")


def sliding_window(config: PreTrainedConfig) -> int | None:
    """The window of a model's sliding layers, in tokens; None for a model that has none."""
    settings = config.to_dict()
    return (
        settings["sliding_window"]
        if settings.get("use_sliding_window", True) and "sliding_window" in settings
        else None
    )


def layer_kinds(config: PreTrainedConfig) -> list[str]:
    """The kind of each layer, full or sliding.

    Raises:
        ConfigError: the model has layers of another kind, which the branch mask cannot serve.
    """
    declared = config.to_dict().get("layer_types")
    if declared is None:
        return [FULL if sliding_window(config) is None else SLIDING]
    unknown = set(declared) - {FULL, SLIDING}
    if unknown:
        rule = f"batch.layout must be separate for layers of kind {sorted(unknown)[0]!r}"
        raise ConfigError(f"{rule}, got 'shared'")
    return list(declared)


AttentionInterface.register("grouped_sdpa", _grouped_sdpa)
AttentionInterface.register("grouped_eager", _grouped_eager)
AttentionMaskInterface.register("grouped_sdpa", sdpa_mask)
AttentionMaskInterface.register("grouped_eager", eager_mask)

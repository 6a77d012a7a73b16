"""The branch mask: who sees whom in a packed row.

A query sees a key that is not after it, of the same group, and in the prompt or in its own branch. With a sliding
window the distance is that of the position ids, which is the distance within the branch's own text.
"""

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from alignment.config.parts import ConfigError
from alignment.data.pack import PADDING, Batch

FULL, SLIDING = "full_attention", "sliding_attention"


def branch_mask(batch: Batch, window: int | None = None) -> Tensor:
    """[R, 1, L, L] bool, True where query i (third axis) sees key j (fourth). Padding sees itself: no row is empty."""
    groups, branches, positions = batch.groups, batch.branches, batch.position_ids
    length = groups.shape[1]
    order = torch.arange(length, device=groups.device)
    sees = order[:, None] >= order[None, :]
    sees = sees & (groups[:, :, None] == groups[:, None, :])
    sees &= (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    if window is not None:
        sees &= positions[:, :, None] - positions[:, None, :] < window
    sees &= (groups != PADDING)[:, None, :]
    sees |= torch.eye(length, dtype=torch.bool, device=groups.device)
    return sees[:, None]


def attention_mask(batch: Batch, config: PreTrainedConfig, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """What the model takes as its `attention_mask` for this batch.

    Returns:
        [R, L] bool in the separate layout, which every architecture takes. In the shared layout [R, 1, L, L], bool for
        SDPA and additive in `dtype` for eager attention; for a model whose layers differ, one such mask per kind.
    """
    if not batch.shared:
        return batch.groups != PADDING
    window = sliding_window(config)
    kinds = set(layer_kinds(config))
    if kinds == {FULL, SLIDING}:
        return {
            FULL: _in_form(branch_mask(batch), config, dtype),
            SLIDING: _in_form(branch_mask(batch, window), config, dtype),
        }
    return _in_form(branch_mask(batch, window if kinds == {SLIDING} else None), config, dtype)


def check_branches(hf: PreTrainedModel) -> None:
    """What the shared layout asks of an architecture: it is told its positions, and its mask says all that is seen.

    Recurrent layers see whatever stands before them; attention of an architecture's own making may measure distance in
    the row (ALiBi, GPT-Neo's local layers) or read the mask in a form of its own.

    Raises:
        ConfigError: the architecture does not promise that.
    """
    is_told = "position_ids" in inspect.signature(hf.base_model.forward).parameters
    if not is_told or hf._is_stateful or not hf._supports_attention_backend:
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


def _in_form(sees: Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> Tensor:
    if config._attn_implementation != "eager":
        return sees
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)

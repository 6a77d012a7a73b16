"""What passes of a model take, counted before it is there.

One pass of it is run with tensors that have shapes and no numbers, on a model without weights: whatever the
architecture keeps for its backward pass, with checkpointing, adapters and autocast as they are asked for, and what is
alive for a moment only, is seen as it is made and as it goes. Two such passes, one of twice the tokens, say what a
token takes and what a pass takes beside its tokens; one or two more say it of few.
"""

from dataclasses import fields, replace
from functools import partial
from logging import getLogger
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import Whole
from alignment.models.allocations import leave_meta, peaks_of
from alignment.models.counted import Phase, Role, Rows
from alignment.models.heads import LanguageModel, ScalarModel, tokens_at_once
from alignment.models.layer_kinds import check_branches

TOKENS = 2048  # of the smaller pass at least: more than a chunk of logits of most vocabularies
getLogger(fake_tensor.__name__).disabled = True  # what cannot be counted is told in a line, by whoever asked


def passes_of(
    role: Role, rows: Rows, hf: PreTrainedModel, compute: torch.dtype, layout: Layout
) -> tuple[float, int, np.ndarray, np.ndarray]:
    """Tokens of a row, `Counted.chunk`, `.passes` and `.few`.

    Args:
        hf: the role's model, without weights.
    """
    layout = Layout.separate if layout is Layout.separate else _layout_of(hf)
    with FakeTensorMode() as fake:
        leave_meta(hf)
        reads_apart = role.is_scalar and not role.is_in_ppo  # scores at the ends; else every token is read
        model = (ScalarModel if role.is_scalar else LanguageModel)(hf, Whole(compute), reads_apart=reads_apart)
        peaks = partial(peaks_of, model, compute=compute, is_trained=role.is_trained, is_in_ppo=role.is_in_ppo)
        prompt, copies = model.soft_prompt(), rows.count if layout is Layout.separate else 1
        before = 0 if prompt is None else copies * prompt.length

        def pass_of(groups: int) -> tuple[int, np.ndarray]:
            """Tokens, as they are packed, and [Phase, Part] of a pass of so many rows."""
            batch = _batch(rows, groups, layout, fake)
            size = batch.input_ids.numel() + groups * before
            return size, peaks(batch, is_moved=role.settings.activation_offloading)

        groups = -(-TOKENS // rows.together)
        chunk = tokens_at_once(hf.config.get_text_config().vocab_size)
        at = pass_of(groups)
        few = many = _line(at, pass_of(2 * groups))
        if not role.is_scalar and 2 * rows.together <= chunk < 2 * groups * rows.together:
            few = _line(pass_of(1), pass_of(2))
        elif groups > 1 and role.is_trained:
            # Gradients and unpacked weights are whole however few the tokens: what is most of a backward pass of these
            # may come at another place than where there are many.
            few, chunk = many.copy(), at[0]
            few[:, Phase.backward :] = _line(pass_of(1), at)[:, Phase.backward :]
    return at[0] / groups, chunk, many, few


def _line(small: tuple[int, np.ndarray], large: tuple[int, np.ndarray]) -> np.ndarray:
    """[2, Phase, Part] of what passes of so many tokens take: whatever these are, and for each of them."""
    per_token = (large[1] - small[1]) / (large[0] - small[0])
    return np.stack([small[1] - per_token * small[0], per_token])


def _layout_of(hf: PreTrainedModel) -> Layout:
    """What it promises; whether it keeps to that, only its weights can tell."""
    try:
        check_branches(hf)
    except ConfigError:
        return Layout.separate
    return Layout.shared


def _batch(rows: Rows, groups: int, layout: Layout, fake: FakeTensorMode) -> Batch:
    """Every token is read out: prompts may be shorter than their limit, and a pass is filled with more completions."""
    prompt, completion = (np.zeros(length, dtype=np.int32) for length in (rows.prompt, rows.completion))
    example = Example(prompt, (completion,) * rows.count, None, Source("footprint", 1), (True,) * rows.count)
    batch = pack([example] * groups, range(groups), layout=layout, pad_id=0)
    targets = batch.input_ids.flatten()
    batch = replace(batch, positions=torch.arange(len(targets)), targets=targets)
    parts = (getattr(batch, field.name) for field in fields(batch))
    made: list[Any] = [fake.from_tensor(part) if isinstance(part, Tensor) else part for part in parts]
    return Batch(*made)

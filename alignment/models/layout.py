"""Which layout a model can take: asked of the model itself, by comparing small batches both ways."""

import numpy as np
import torch
from torch import Tensor

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.sequence import each_alone, sequence_group
from alignment.models.files import one_line
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.layer_kinds import check_branches, sees_by_mask, unknown_kinds
from alignment.models.readout import token_logprobs, token_values
from alignment.models.sequence import KEY
from alignment.models.weight_dtype import forwards_in_float32
from alignment.terminal import say

TOLERANCE = 1e-3  # relative; float32 rounding is a thousand times smaller, a wrong mask a hundred times larger


def settle_layout(model: LanguageModel | ScalarModel, asked: Layout) -> Layout:
    """`shared` or `separate`. `auto` takes `shared` where the model reads small batches alike both ways, and says so
    where it does not.

    Raises:
        ConfigError: `shared` is asked for and the model cannot take it.
    """
    if asked is Layout.separate:
        return Layout.separate
    problem = _problem(model)
    if problem is None:
        return Layout.shared
    if asked is Layout.shared:
        raise ConfigError(f"batch.layout must be separate or auto for this model ({problem}), got 'shared'")
    say(f"batch.layout: separate ({problem})")
    return Layout.separate


def require_parts(model: LanguageModel | ScalarModel, layout: Layout) -> None:
    """Where processes share rows, that the model reads its part of small batches as it reads them whole.

    Raises:
        ConfigError: it does not, as an architecture whose layers carry more along a row than their attention sees.
    """
    group = sequence_group()
    if group is None:
        return
    if problem := _problem_of_parts(model, layout):
        raise ConfigError(f"{KEY} must be 1 for this model ({problem}), got {group.size}")


def _problem_of_parts(model: LanguageModel | ScalarModel, layout: Layout) -> str | None:
    name, kinds = type(model.hf).__name__, unknown_kinds(model.hf.config.get_text_config())
    if kinds or not sees_by_mask(model.hf):
        return f"{name} has layers in which more goes along a row than attention sees" + (
            f", {kinds[0]}" if kinds else ""
        )
    try:
        with forwards_in_float32(model, model.placement):
            with each_alone():
                whole = _read(model, layout)
            parts = _read(model, layout)
    except (RuntimeError, TypeError) as error:  # of a layer that does not hand on to its attention what it is told
        return f"{name} cannot read a part of a row: {one_line(error)}"
    difference = (parts - whole).abs().max() / whole.abs().max().clamp(min=1e-6)
    return None if difference < TOLERANCE else f"{name} reads a part of a row differently, by {difference:.1e}"


def _problem(model: LanguageModel | ScalarModel) -> str | None:
    """Why the shared layout is not for this model; None where it is."""
    try:
        check_branches(model.hf)
        with forwards_in_float32(model, model.placement):
            shared, separate = (_read(model, layout) for layout in (Layout.shared, Layout.separate))
    except ConfigError as error:
        return str(error)
    except RuntimeError as error:  # of a layer that does not hand on to its attention what it is told
        return f"{type(model.hf).__name__} cannot read a batch in the shared layout: {one_line(error)}"
    difference = (shared - separate).abs().max() / separate.abs().max().clamp(min=1e-6)
    if difference < TOLERANCE:
        return None
    return f"{type(model.hf).__name__} reads a batch in the shared layout differently, by {difference:.1e}"


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # not worth a compilation
def _read(model: LanguageModel | ScalarModel, layout: Layout) -> Tensor:
    was_training = model.training
    model.eval()
    readout = token_logprobs if isinstance(model, LanguageModel) else token_values
    read = [readout(model, _probe(model, layout, replies)) for replies in (2, 1)]  # with a mask, and plain text
    model.train(was_training)
    return torch.cat(read)


def _probe(model: LanguageModel | ScalarModel, layout: Layout, replies: int) -> Batch:
    """Two prompts with one or two completions each, in one row where the layout shares rows."""
    rng = np.random.default_rng(0)
    vocabulary = model.hf.config.get_text_config().vocab_size

    def ids(length: int) -> np.ndarray:
        return rng.integers(0, vocabulary, length).astype(np.int32)

    examples = [
        Example(ids(prompt), tuple(map(ids, completions[:replies])), None, Source("probe", 1), (True,) * replies)
        for prompt, *completions in ((7, 5, 6), (3, 2, 3))
    ]
    device = next(model.parameters()).device
    return pack(examples, [0, 1], layout=layout, pad_id=0).to(device)

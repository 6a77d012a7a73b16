"""A soft prompt in a model: embeddings that stand before each text and train, while what reads them is frozen.

To the model it is so many further tokens, with ids above its vocabulary: rows are laid out with them before each prompt
(`set_before`), and the input embeddings look them up here. So attention, positions, a cache of keys and values take
them for tokens, and no text, target or score has them. What makes the embeddings are peft's own modules.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import PreTrainedModel

from alignment.data.pack import Batch
from alignment.distributed.engine import shape_of

NAME = "soft_prompt"


class SoftPrompt(nn.Module):
    """Within a model's input embeddings, whose hooks ask it."""

    def __init__(self, encoder: nn.Module, embeddings: nn.Module, length: int) -> None:
        """
        Args:
            encoder: [1, k] places -> [1, k, H], with a module `embedding`.
        """
        super().__init__()
        self.encoder, self.length = encoder, length
        self.first = shape_of(embeddings.get_parameter("weight"))[0]  # the id of its first token
        self.is_on, self.is_as_it_was = True, False
        self.register_buffer("was", None, persistent=False)  # its table as it was, for a reference
        self._ids: Tensor | None = None  # of the lookup that runs

    def table(self) -> Tensor:
        """[k, H], in the precision of its own weights, in which it is saved."""
        if self.is_as_it_was:
            return self.get_buffer("was")
        weight = next(self.encoder.parameters())
        with torch.autocast(weight.device.type, enabled=False):
            made: Tensor = self.encoder(torch.arange(self.length, device=weight.device)[None])[0]
        return made

    def keep(self) -> None:
        """Its table as it is now, frozen, for `soft_prompt_as_it_was`."""
        self.was = self.table().detach().clone()

    def ids(self) -> np.ndarray:
        """[k] int32, what stands before a prompt that is replied to."""
        return np.arange(self.first, self.first + self.length, dtype=np.int32)

    def within_vocabulary(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before a lookup: ids of its own would be beyond the embeddings."""
        self._ids, *rest = inputs
        assert self._ids is not None
        return (self._ids.masked_fill(self._ids >= self.first, 0), *rest)

    def in_their_places(self, _: nn.Module, __: tuple[Any, ...], found: Tensor) -> Tensor:
        """Behind it."""
        ids, self._ids = self._ids, None
        assert ids is not None
        places = (ids - self.first) % self.length  # of other tokens any, which is not taken
        own = embedding(places, self.table()).to(found.dtype)
        return torch.where((ids >= self.first)[..., None], own, found)


def soft_prompt_of(hf: PreTrainedModel) -> SoftPrompt | None:
    """The model's, if it has one."""
    found = hf.get_input_embeddings()._modules.get(NAME)
    return found if isinstance(found, SoftPrompt) else None


def put_soft_prompt(hf: PreTrainedModel, encoder: nn.Module, length: int) -> SoftPrompt:
    """Have the model's embeddings look up so many further tokens in the encoder."""
    embeddings = hf.get_input_embeddings()
    prompt = SoftPrompt(encoder, embeddings, length)
    embeddings.register_forward_pre_hook(prompt.within_vocabulary)
    embeddings.register_forward_hook(prompt.in_their_places)
    embeddings.add_module(NAME, prompt)
    return prompt


@contextmanager
def soft_prompt_off(hf: PreTrainedModel) -> Iterator[None]:
    """Inside, the model is its base, and reads texts alone."""
    prompt = soft_prompt_of(hf)
    if prompt is None:
        yield
        return
    prompt.is_on = False
    try:
        yield
    finally:
        prompt.is_on = True


@contextmanager
def soft_prompt_as_it_was(hf: PreTrainedModel) -> Iterator[None]:
    """Inside, the model reads texts behind the soft prompt that was kept, if it has one."""
    prompt = soft_prompt_of(hf)
    if prompt is None:
        yield
        return
    prompt.is_as_it_was = True
    try:
        yield
    finally:
        prompt.is_as_it_was = False


def set_before(batch: Batch, prompt: SoftPrompt) -> tuple[Batch, Callable[[Tensor], Tensor]]:
    """The batch with the soft prompt before each prompt in its rows, and what gives places in the rows laid end to end
    as they were their places now. No GPU is asked for a length."""
    count, length, ids = prompt.length, batch.input_ids.shape[1], batch.input_ids
    spans = list(batch.group_lengths) or [length]
    new = torch.arange(count, device=ids.device).expand(len(ids), -1)
    longer = length + count * len(spans)

    def grown(values: Tensor, own: Callable[[Tensor], Tensor]) -> Tensor:
        """`own`: of the span that they stand before."""
        return torch.cat([part for span in values.split(spans, dim=1) for part in (own(span), span)], dim=1)

    def moved(places: Tensor) -> Tensor:
        before = batch.groups.flatten()[places] + 1 if batch.shared else 1  # soft prompts up to there in its row
        return places // length * longer + places % length + count * before

    grown_batch = replace(
        batch,
        input_ids=grown(ids, lambda _: new + prompt.first),
        position_ids=grown(batch.position_ids + count, lambda _: new),
        groups=grown(batch.groups, lambda span: span[:, :1].expand(-1, count)),
        branches=grown(batch.branches, lambda _: torch.zeros_like(new)),
        positions=moved(batch.positions),
        ends=moved(batch.ends),
        prompt_positions=moved(batch.prompt_positions),
        branch_lengths=tuple((first + count, *others) for first, *others in batch.branch_lengths),
    )
    return grown_batch, moved

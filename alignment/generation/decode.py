"""A batch of replies, token by token, with transformers' generate: what is drawn, where a reply ends, who goes on.

A reply is a pure function of weights, prompt, seed, the prompt's key and the reply's number: its uniforms are laid out
beforehand and the warped distribution is inverted at them, so that neither the rows beside it nor their order nor the
number of processes has a say. The one caveat is rounding: logits differ in their last bits between batch shapes, and a
uniform that lies so close to the boundary of two tokens falls on the other side.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    Cache,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers import GenerationConfig as HFGenerationConfig

from alignment.config.errors import UserError
from alignment.config.generation import GenerationConfig
from alignment.distributed.device import any_kernel
from alignment.generation.cache import FixedCaches, new_cache, splits, whole_cache

COMPACT_BELOW = 0.75  # share of a call's rows still live below which the next call goes on with those alone
NO_NUMBERS = "the logits of the policy are no finite numbers: look for such weights, or lower train.learning_rate"


def uniforms(seed: int, key: int, reply: int, count: int) -> np.ndarray:
    """[count] float64 in [0, 1); those of a smaller count are the first of a greater one's."""
    sequence = np.random.SeedSequence(seed, spawn_key=(key, reply))
    return np.random.Generator(np.random.Philox(sequence)).random(count)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a reply is drawn from and where it ends."""

    config: GenerationConfig
    end_ids: list[int]
    pad_id: int
    stop: StopStringCriteria | None
    watch: Callable[[Tensor], None] | None = None  # told the replies so far at each token

    def hf(self, max_new_tokens: int) -> HFGenerationConfig:
        """transformers' part; `InverseCDF` leaves one token, so that its argmax is the draw."""
        return HFGenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self.end_ids,
            pad_token_id=self.pad_id,
            use_cache=True,
            return_dict_in_generate=True,
        )

    def processors(self, draw: "InverseCDF", width: int) -> LogitsProcessorList:
        """transformers' own, in its order, then the draw."""
        config, processors = self.config, LogitsProcessorList()
        if config.min_new_tokens:
            least = config.min_new_tokens
            processors.append(MinNewTokensLengthLogitsProcessor(width, least, self.end_ids, str(draw.uniforms.device)))
        if config.temperature != 1:
            processors.append(TemperatureLogitsWarper(config.temperature))
        if config.top_k:
            processors.append(TopKLogitsWarper(config.top_k))
        if config.top_p < 1:
            processors.append(TopPLogitsWarper(config.top_p))
        processors.append(draw)
        return processors


class InverseCDF(LogitsProcessor):
    """Leaves of each row the one token where its cumulated probabilities pass its uniform."""

    def __init__(self, uniforms: Tensor, width: int) -> None:
        self.uniforms = uniforms  # [B, N] float64, one a step
        self.width = width  # of the prompts
        self.total = uniforms.new_zeros(())  # of all probabilities so far: no number, once one of them is none

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        with any_kernel():  # CUDA's cumsum may differ in the last of 53 bits, where next to no uniform lies
            cdf = scores.softmax(-1).cumsum(-1, dtype=torch.float64)  # [B, V]
        uniforms = self.uniforms[:, input_ids.shape[1] - self.width, None]
        tokens = torch.searchsorted(cdf, uniforms * cdf[:, -1:], right=True)  # the first with cdf > u
        tokens = tokens.clamp(max=cdf.shape[1] - 1)  # where there is none, for want of numbers
        self.total = self.total + cdf[:, -1].sum()
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)


class EndCriteria(StoppingCriteria):
    """Notes where replies end, by an end token or a stop string of their own (not one that the prompt began)."""

    def __init__(self, rules: Rules, width: int, rows: int, device: torch.device, live: int) -> None:
        """The call ends when fewer than `live` rows go on."""
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # with its end; 0 while a reply goes on
        self.end_ids = torch.tensor(rules.end_ids, device=device)
        self.stop, self.watch, self.width, self.live = rules.stop, rules.watch, width, live

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        replies = input_ids[:, self.width :]
        if self.watch is not None:
            self.watch(replies)
        ends = torch.isin(replies[:, -1], self.end_ids)
        if self.stop is not None:
            ends = ends | self.stop(replies, scores)
        self.lengths = torch.where(ends & (self.lengths == 0), replies.shape[1], self.lengths)
        ended = self.lengths > 0
        return ended | ((~ended).sum() < self.live)


def decode(
    hf: Any, ids: Tensor, mask: Tensor, uniforms: Tensor, rules: Rules, fixed: FixedCaches | None = None
) -> tuple[list[tuple[np.ndarray, bool]], int]:
    """n replies to each of P prompts: (ids, finished) in the order of the rows of `uniforms` [P * n, N], prompt by
    prompt; and the number of tokens that were computed for them, rows x steps.

    `ids`, `mask` [P, W], padded on the left. The prompts are computed once, all but their last token, and the cache is
    repeated; rows that have ended leave the batch when enough have. A cache that is more than keys and values (a
    recurrent state) allows neither: there each reply has its own prompt, and all rows go on till the last has ended.
    With `fixed` caches, which hold keys and values in one place, all rows go on as well, and the step is compiled.

    Raises:
        UserError: the model gives logits that are no numbers.
    """
    width, length = ids.shape[1], ids.shape[1] + uniforms.shape[1]
    repeats, drops_rows = len(uniforms) // len(ids), fixed is None and splits(hf)
    cache: Cache | None = new_cache(hf, length) if drops_rows else None
    if fixed is not None:
        prompts = whole_cache(hf, width)
        hf.generate(ids[:, :-1], attention_mask=mask[:, :-1], generation_config=rules.hf(1), past_key_values=prompts)
        cache = fixed.filled(prompts, repeats, length)
    elif cache is not None and repeats > 1 and width > 1:
        hf.generate(ids[:, :-1], attention_mask=mask[:, :-1], generation_config=rules.hf(1), past_key_values=cache)
        cache.batch_repeat_interleave(repeats)
    ids, mask = ids.repeat_interleave(repeats, 0), mask.repeat_interleave(repeats, 0)
    replies: list[tuple[np.ndarray, bool]] = [(np.empty(0), False)] * len(ids)
    rows, computed = torch.arange(len(ids), device=ids.device), 0
    while len(rows):
        ends = EndCriteria(
            rules, width, len(rows), ids.device, live=int(COMPACT_BELOW * len(rows)) if drops_rows else 1
        )
        before = ids.shape[1]
        draw = InverseCDF(uniforms[rows], width)
        output = hf.generate(
            ids,
            attention_mask=mask,
            generation_config=rules.hf(length - before),
            logits_processor=rules.processors(draw, width),
            stopping_criteria=StoppingCriteriaList([ends]),
            **({} if cache is None else {"past_key_values": cache}),
        )
        if not draw.total.isfinite():
            raise UserError(NO_NUMBERS)
        ids = output.sequences
        computed += len(rows) * (ids.shape[1] - before)
        is_last = ids.shape[1] == length
        for row, reply in _ended(rows, ids[:, width:], ends.lengths, is_last):
            replies[row] = reply
        goes_on = (ends.lengths == 0).nonzero()[:, 0] if not is_last else rows[:0]
        if len(goes_on):
            assert cache is not None  # without one all rows go on till the last has ended
            cache.batch_select_indices(goes_on)
            mask = torch.cat([mask, mask.new_ones(len(mask), ids.shape[1] - before)], 1)[goes_on]
            ids = ids[goes_on]
        rows = rows[goes_on]
    return replies, computed


def _ended(
    rows: Tensor, tokens: Tensor, lengths: Tensor, is_last: bool
) -> Iterator[tuple[int, tuple[np.ndarray, bool]]]:
    """(row, (ids, finished)) of each reply that has ended; after the last step of those, too, that have not."""
    table = tokens.cpu().numpy()
    for row, ids, length in zip(rows.tolist(), table, lengths.tolist(), strict=True):
        if length or is_last:
            yield row, (ids[: length or None].astype(np.int32), length > 0)

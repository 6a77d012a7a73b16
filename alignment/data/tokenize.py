"""Records to token ids. Truncation happens here and nowhere else."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.data.chat import render
from alignment.data.records import DataError, Record, Source


@dataclass(frozen=True, slots=True)
class Limits:
    """The most tokens of a prompt with one of its completions, and of the prompt."""

    max_length: int
    max_prompt_length: int

    def __post_init__(self) -> None:
        if not 1 <= self.max_prompt_length < self.max_length:
            rule = f"max_prompt_length must be in [1, max_length = {self.max_length})"
            raise ValueError(f"{rule}, got {self.max_prompt_length}")


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A record in tokens. P and C_k are the lengths of the prompt and of the k-th completion."""

    prompt_ids: np.ndarray  # [P] int32; what generation is given
    completion_ids: tuple[np.ndarray, ...]  # each [C_k] int32, C_k >= 1
    margin: float | None
    source: Source
    finished: tuple[bool, ...]  # per completion: True if it ends with its EOS, False if it was cut
    tags: tuple[str, ...] = ()  # the record's


@dataclass(slots=True)
class Truncation:
    """How much was cut so far."""

    prompts: int = 0
    """Prompts that lost their beginning."""
    completions: int = 0
    """Completions that lost their end."""


def encode(record: Record, tokenizer: PreTrainedTokenizerBase, limits: Limits, truncation: Truncation) -> Example:
    """The tokens of a record, as the tokenizer's chat template lays it out.

    The prompt is tokenized as it will be for generation, on its own. A completion's tokens are those of prompt and
    completion together, less the prompt's, so that no break between tokens is invented; where a token spans the border
    the completion is tokenized alone. A completion ends with exactly one EOS: the template's, and nothing the
    template writes after it, or else one is appended. Prompts too long lose their beginning, but for a BOS;
    completions too long lose their end, EOS included; both are added to `truncation`. A plain text, without a prompt,
    follows the token that begins a document, BOS or else EOS.

    Raises:
        DataError: a reply holds the EOS token in its text, the two of a pair do not differ within the limits, or the
            template refuses the dialogue.
        ValueError: the tokenizer has no EOS token.
    """
    if tokenizer.eos_token is None:
        raise ValueError("the tokenizer must have an eos_token: without one no reply has an end")
    if any(tokenizer.eos_token in text for text in record.completions):
        raise DataError(record.source, f"a reply holds the end-of-text token {tokenizer.eos_token!r}")
    if record.prompt:
        prompt_text, completion_texts = render(record, tokenizer)
        whole_prompt = _ids(tokenizer, prompt_text)
        completions = [_completion_ids(tokenizer, prompt_text, whole_prompt, text) for text in completion_texts]
    else:
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        whole_prompt = [end if begin is None else begin]
        completions = [[*_ids(tokenizer, text), end] for text in record.completions]
    prompt = _shortened(whole_prompt, limits.max_prompt_length, tokenizer.bos_token_id)
    room = limits.max_length - len(prompt)
    finished = tuple(len(ids) <= room for ids in completions)
    kept = [ids[:room] for ids in completions]
    if len(kept) == 2 and kept[0] == kept[1]:
        raise DataError(record.source, f"chosen and rejected are the same within data.max_length = {limits.max_length}")
    truncation.prompts += len(prompt) < len(whole_prompt)
    truncation.completions += finished.count(False)
    return Example(
        prompt_ids=np.array(prompt, dtype=np.int32),
        completion_ids=tuple(np.array(ids, dtype=np.int32) for ids in kept),
        margin=record.margin,
        source=record.source,
        finished=finished,
        tags=record.tags,
    )


def _shortened(prompt: list[int], limit: int, bos: int | None) -> list[int]:
    """The end of a prompt, behind the BOS that it began with: models that have one are lost without it."""
    if len(prompt) <= limit:
        return prompt
    keeps_bos = prompt[0] == bos and limit > 1
    return [prompt[0], *prompt[-(limit - 1) :]] if keeps_bos else prompt[-limit:]


def _completion_ids(
    tokenizer: PreTrainedTokenizerBase, prompt_text: str, prompt: list[int], completion_text: str
) -> list[int]:
    joint = _ids(tokenizer, prompt_text + completion_text)
    fits = joint[: len(prompt)] == prompt
    ids = joint[len(prompt) :] if fits else _ids(tokenizer, completion_text)
    eos = tokenizer.eos_token_id
    return ids[: ids.index(eos) + 1] if eos in ids else [*ids, eos]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

"""Records to token ids. Truncation happens here and nowhere else."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.config.data import Template
from alignment.config.errors import ConfigError
from alignment.data.chat import PROBE, Piece, Rendered, render
from alignment.data.records import DataError, Message, Record, Source
from alignment.data.texts import Texts

Layout = Callable[[Record, PreTrainedTokenizerBase], Rendered]


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
    learned: tuple[np.ndarray, ...] | None = None  # each [C_k] bool, the tokens that carry loss; None: all of them
    labels: tuple[bool | float, ...] = ()  # the record's, of the one completion or of its steps
    ends: tuple[int, ...] = ()  # the token of the completion at which each label is read; (): one label, at its last
    weight: float = 1.0  # what the row counts in the mean of a loss


def row_length(example: Example) -> int:
    """Tokens of the prompt with the longest of its completions."""
    return len(example.prompt_ids) + max(map(len, example.completion_ids), default=0)


@dataclass(slots=True)
class Truncation:
    """How much was cut so far."""

    prompts: int = 0
    """Prompts that lost their beginning, turns or tokens."""
    completions: int = 0
    """Completions that lost their end."""
    steps: int = 0
    """Steps that ended in what was lost, and their labels with them."""


def encode(record: Record, tokenizer: PreTrainedTokenizerBase, limits: Limits, truncation: Truncation) -> Example:
    """`encode_rendered` of a record as the tokenizer's chat template lays it out.

    Raises:
        DataError: the template refuses the dialogue.
        ValueError: the tokenizer has no EOS token.
    """
    return encode_rendered(record, render(record, tokenizer), Texts(tokenizer), limits, truncation)


def encode_rendered(
    record: Record,
    rendered: Rendered,
    texts: Texts,
    limits: Limits,
    truncation: Truncation,
    layout: Layout = render,
) -> Example:
    """The tokens of a record that is laid out, by `layout`, which does it again where turns are cut off.

    The prompt is tokenized as it will be for generation, on its own. A completion's tokens are those of prompt and
    completion together, less the prompt's, so that no break between tokens is invented; where a token spans the border
    the completion is tokenized alone. A completion ends with exactly one EOS: the template's, and nothing the
    template writes after it, or else one is appended; one that was cut before its end has none. Prompts too long lose
    whole turns, the oldest first, but neither the system turn nor the last question; where these alone are too long the
    question loses its beginning. Completions too long lose their end, EOS included; both are added to `truncation`.
    A plain text, without a prompt, follows the token that begins a document, BOS or else EOS.

    Raises:
        DataError: the template refuses the dialogue.
        ValueError: the tokenizer has no EOS token.
    """
    if texts.tokenizer.eos_token is None:
        raise ValueError("the tokenizer must have an eos_token: without one no reply has an end")
    rendered, prompt, is_whole = _fitting(record, rendered, texts, limits.max_prompt_length, layout)
    replies = [
        _reply(texts, rendered.prompt, pieces, record.template, ends=record.has_end(number))
        for number, pieces in enumerate(rendered.replies)
    ]
    room = limits.max_length - len(prompt)
    fits = [len(ids) <= room for ids, _ in replies]
    truncation.prompts += not is_whole
    truncation.completions += fits.count(False)
    learned = tuple(np.array(mask[:room], dtype=bool) for _, mask in replies)
    ends = _step_ends(record, rendered, texts, len(replies[0][0]), room) if record.steps else ()
    truncation.steps += len(record.steps) - len(ends)
    return Example(
        prompt_ids=np.array(prompt, dtype=np.int32),
        completion_ids=tuple(np.array(ids[:room], dtype=np.int32) for ids, _ in replies),
        margin=record.margin,
        source=record.source,
        finished=tuple(fit and end for fit, end in zip(fits, record.finished or fits, strict=True)),
        tags=record.tags,
        learned=None if all(mask.all() for mask in learned) else learned,
        labels=record.labels[: len(ends)] if record.steps else record.labels,
        ends=ends,
        weight=record.weight,
    )


def _fitting(
    record: Record, rendered: Rendered, texts: Texts, limit: int, layout: Layout
) -> tuple[Rendered, list[int], bool]:
    """The record laid out, its prompt's tokens within the limit, and whether they are all of them."""
    whole = _prompt_ids(record, texts, rendered.prompt)
    if len(whole) <= limit:
        return rendered, whole, True
    ids = whole
    for shorter in _without_oldest(record.prompt):
        record = replace(record, prompt=shorter)
        rendered = layout(record, texts.tokenizer)
        ids = _prompt_ids(record, texts, rendered.prompt)
        if len(ids) <= limit:
            return rendered, ids, False
    head = _head(record, texts, ids)
    kept = head if len(head) < limit else head[:1] if ids[0] == texts.tokenizer.bos_token_id and limit > 1 else []
    return rendered, [*kept, *ids[len(ids) - limit + len(kept) :]], False


def _without_oldest(prompt: list[Message]) -> Iterator[list[Message]]:
    """The prompt from its second question on, from its third, ..., behind the system turn where there is one."""
    system = _system(prompt)
    questions = [place for place, turn in enumerate(prompt) if turn["role"] == "user"]
    for place in questions[1:]:
        yield [*system, *prompt[place:]]


def _system(prompt: list[Message]) -> list[Message]:
    return [turn for turn in prompt[:1] if turn["role"] in ("system", "developer")]


def _head(record: Record, texts: Texts, ids: list[int]) -> list[int]:
    """What is kept before a question that is too long itself, up to where its own text begins: the BOS, for models that
    have one are lost without it, the system turn, the row's or the template's own, and the turn's opening."""
    if record.template is Template.none:
        return ids[:1] if ids[0] == texts.tokenizer.bos_token_id else []
    other = replace(record, prompt=[*_system(record.prompt), {**PROBE[0], "role": "user"}], completions=())
    probe = _prompt_ids(record, texts, render(other, texts.tokenizer).prompt)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(ids, probe, strict=False))
    return [first for first, _ in same]


def _prompt_ids(record: Record, texts: Texts, text: str) -> list[int]:
    bos, eos = texts.tokenizer.bos_token_id, texts.tokenizer.eos_token_id
    if not record.prompt:
        return [eos if bos is None else bos]
    ids = texts.ids(text)
    # A text that no template lays out begins as the tokenizer has texts begin, once.
    begins = record.template is Template.none and texts.begins_with_bos()
    return [bos, *ids] if begins and ids[:1] != [bos] else ids


def _reply(
    texts: Texts, prompt: str, pieces: tuple[Piece, ...], template: Template, *, ends: bool
) -> tuple[list[int], list[bool]]:
    """A reply's tokens and which of them are learned. Each piece is tokenized behind the one before it."""
    ids: list[int] = []
    learned: list[bool] = []
    before = prompt
    for piece in pieces:
        more = texts.behind(before, piece.text)
        if piece is pieces[-1] and ends:
            more = _ended(more, texts.tokenizer.eos_token_id, template)
        ids, learned, before = [*ids, *more], [*learned, *[piece.learned] * len(more)], piece.text
    return ids, learned


def read_of(record: Record, rendered: Rendered, texts: Texts) -> Iterator[str]:
    """The texts whose ids `encode_rendered` asks for, where the prompt need not be cut."""
    if record.prompt:
        yield rendered.prompt
    for pieces in rendered.replies:
        befores = [rendered.prompt, *(piece.text for piece in pieces[:-1])]
        for before, piece in zip(befores, pieces, strict=True):
            last = texts.last_part(before)
            yield from (last, last + piece.text)


def _step_ends(record: Record, rendered: Rendered, texts: Texts, length: int, room: int) -> tuple[int, ...]:
    """The tokens of a reply, of `length` tokens of which `room` are kept, at which its steps have ended: what separates
    a step from the next one is read then, unless a token of the next one holds it, and at the last step what ends the
    reply."""
    (reply,), ((turn,),) = rendered.replies, record.completions
    if len(reply) != 1 or turn["content"] not in reply[0].text:
        what = "writes the text of the reply otherwise than the row has it, so that its steps cannot be told"
        raise DataError(record.source, f"the tokenizer's chat template {what}")
    tokenizer = texts.tokenizer
    if not tokenizer.is_fast:
        rule = "model.path must have a fast tokenizer for steps: no other tells which text a token stands for"
        raise ConfigError(f"{rule}, got {type(tokenizer).__name__}")
    before, text = rendered.prompt, reply[0].text
    first = len(texts.ids(before))
    joint = tokenizer(before + text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    if joint["input_ids"][:first] == texts.ids(before):
        spans = [(begin - len(before), end - len(before)) for begin, end in joint["offset_mapping"][first:]]
    else:
        spans = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)["offset_mapping"]
    begin, until = text.index(turn["content"]), [end for _, end in spans]
    inner = (_read_at(until, begin + len(turn["content"][:step].rstrip()), begin + step) for step in record.steps[:-1])
    ends = tuple(end for end in (*inner, length - 1) if end < room)
    if not ends:
        raise DataError(record.source, f"no step of the reply ends within data.max_length, {room} tokens of a reply")
    return ends


def _read_at(until: list[int], text_end: int, step_end: int) -> int:
    """The index of the token at whose output a step is judged. until: where in the text each token ends. It is the last
    token that ends within the step or its separator; where there is none, the first that ends behind them."""
    inside = [at for at, end in enumerate(until) if text_end <= end <= step_end]
    return inside[-1] if inside else next(at for at, end in enumerate(until) if end > step_end)


def _ended(ids: list[int], eos: int, template: Template) -> list[int]:
    if template is Template.none:
        return ids if ids[-1:] == [eos] else [*ids, eos]
    return ids[: ids.index(eos) + 1] if eos in ids else [*ids, eos]

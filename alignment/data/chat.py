"""Dialogues to text: the door to the tokenizer's chat template and to trl's handling of conversations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.data_utils import maybe_convert_to_chatml

from alignment.config.vocabulary import Template
from alignment.data.records import DataError, Message, Record, assistant

# The layout of HH-RLHF, with an end after each reply so that a model learns where to stop. A prompt with its open
# "Assistant:" is a prefix of the same prompt answered: nothing may be written between the colon and the reply.
PLAIN_TEMPLATE = (
    "{%- if bos_token -%}{{ bos_token }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ '\\n\\nSystem: ' + (message['content'] | trim) }}"
    "{%- elif message['role'] == 'user' -%}{{ '\\n\\nHuman: ' + (message['content'] | trim) }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ '\\n\\nAssistant: ' + (message['content'] | trim) + (eos_token or '') }}"
    "{%- else -%}{{ raise_exception('a role must be system, user or assistant, got ' + message['role']) }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\\n\\nAssistant:' }}{%- endif -%}"
)
PROBE = assistant("\u241f")  # a reply that begins like no control token
# What a template raises: its own refusals, and Python's where it joins a text and something else.
REFUSALS = (TemplateError, TypeError, ValueError, KeyError)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a reply's text."""

    text: str
    learned: bool  # the assistant's; False for the turns of others between, and for headers


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a record."""

    prompt: str  # up to where the reply begins
    replies: tuple[tuple[Piece, ...], ...]  # each reply's pieces in order, with what ends it

    def texts(self) -> tuple[str, ...]:
        """The replies, each whole."""
        return tuple("".join(piece.text for piece in pieces) for pieces in self.replies)


def ensure_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give a tokenizer that has no chat template the plain one.

    Returns:
        The sentence to tell the user once; None if the tokenizer has a template of its own, which is left alone.
    """
    if tokenizer.chat_template is not None:
        return None
    tokenizer.chat_template = PLAIN_TEMPLATE
    name = tokenizer.name_or_path or "the tokenizer"
    return rf"{name} has no chat template: turns are laid out plainly, as \n\nHuman: ... \n\nAssistant: ..."


def render(record: Record, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """The text of a record's prompt and of each of its completions, as the tokenizer's chat template lays them out.

    Whitespace around a turn is kept or trimmed as the template has it. Where a template opens a reply otherwise than it
    writes one, as with a "<think>" to begin with, the prompt of a reply is what the two have in common.

    Raises:
        DataError: the template refuses the dialogue, for instance because it knows no system role, or lays out the
            turns before a reply otherwise with it than without.
    """
    if record.template is Template.none:
        return _as_it_is(record, tokenizer)
    wholes = [_whole(record, tokenizer, number) for number in range(len(record.completions))]
    prompt = _opening(record, tokenizer, record.prompt, wholes)
    replies = [
        _pieces(record, tokenizer, turns, whole, prompt)
        for turns, whole in zip(record.completions, wholes, strict=True)
    ]
    return Rendered(prompt, tuple(replies))


def _opening(
    record: Record, tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], wholes: Sequence[str]
) -> str:
    """What stands before the assistant's next turn in each of the texts that go on with it."""
    alone = written(record, tokenizer, turns, add_generation_prompt=True)
    if all(whole.startswith(alone) for whole in wholes):
        return alone
    answered = written(record, tokenizer, [*turns, *PROBE])
    common = takewhile(lambda pair: pair[0] == pair[1], zip(alone, answered, strict=False))
    opening = "".join(character for character, _ in common)
    if not all(whole.startswith(opening) for whole in wholes):
        raise DataError(
            record.source,
            f"the tokenizer's chat template writes the first {len(turns)} turns otherwise where a reply follows them, "
            "so that the tokens of the reply cannot be told; data.learn=last learns the last reply alone",
        )
    return opening


def written(record: Record, tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], **how: Any) -> str:
    """These turns with the record's tools, as the template has them; `how` is apply_chat_template's."""
    try:
        tools: Any = list(record.tools) or None  # some templates write a header for no tools
        return str(
            tokenizer.apply_chat_template(list(turns), tools=tools, tokenize=False, **record.template_kwargs, **how)
        )
    except REFUSALS as error:
        raise DataError(record.source, f"the tokenizer's chat template refuses the dialogue: {error}") from error


def _whole(record: Record, tokenizer: PreTrainedTokenizerBase, number: int) -> str:
    """Prompt and one reply; a reply that was cut ends where its text does."""
    turns = [*record.prompt, *record.completions[number]]
    if record.has_end(number):
        return written(record, tokenizer, turns)
    # Not continue_final_message, which refuses a reply that its template rewrites, such as one with "</think>" in it.
    mark = PROBE[0]["content"]
    marked = {**turns[-1], "content": turns[-1]["content"].rstrip() + mark}
    text, found, _ = written(record, tokenizer, [*turns[:-1], marked]).rpartition(mark)
    if not found:
        raise DataError(record.source, "the tokenizer's chat template leaves out the reply's text")
    return text


def _pieces(
    record: Record, tokenizer: PreTrainedTokenizerBase, turns: list[Message], whole: str, prompt: str
) -> tuple[Piece, ...]:
    """A reply's turns, the assistant's and what the template writes between them."""
    places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    befores = [[*record.prompt, *turns[:place]] for place in places]
    begins = [len(prompt), *(len(_opening(record, tokenizer, before, [whole])) for before in befores[1:])]
    pieces = []
    for number, place in enumerate(places):
        begin, end = begins[number], len(whole)
        if number + 1 < len(places):
            following = begins[number + 1]
            end = _end(record, tokenizer, [*befores[number], turns[place]], whole, begin, following)
            between = [Piece(whole[end:following], False)] if end < following else []
        else:
            between = []
        pieces += [Piece(whole[begin:end], bool(turns[place].get("weight", 1))), *between]
    return tuple(pieces)


def _end(
    record: Record, tokenizer: PreTrainedTokenizerBase, turns: list[Message], whole: str, begin: int, following: int
) -> int:
    """Where the last of these turns, which begins at `begin`, ends in a text that goes on: behind its EOS, or where
    the text without what goes on ends, less the EOS of a whole dialogue."""
    eos = str(tokenizer.eos_token)
    at = whole.find(eos, begin, following)
    if at >= 0:
        return at + len(eos)
    alone = written(record, tokenizer, turns).removesuffix(eos)
    if not whole.startswith(alone) or not begin < len(alone) <= following:
        raise DataError(
            record.source,
            f"the tokenizer's chat template writes turn {len(turns)} otherwise where more follow, so that its end "
            "cannot be told; data.learn=last learns the last reply alone",
        )
    return len(alone)


def _as_it_is(record: Record, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """The texts themselves; an end is the tokens' business."""
    prompt = "".join(turn["content"] for turn in record.prompt)
    return Rendered(prompt, tuple((Piece(turns[0]["content"], True),) for turns in record.completions))


def to_chatml(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns of {from, value} as turns of {role, content}; other turns as they are. The argument is left alone."""
    return maybe_convert_to_chatml({"messages": [dict(turn) for turn in turns]})["messages"]

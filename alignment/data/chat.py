"""Dialogues to text: the door to the tokenizer's chat template and to trl's handling of conversations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from alignment.config.data import Template
from alignment.config.errors import ConfigError
from alignment.data.calls import spells_python, with_json
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
OTHERWISE = "the first {} turns otherwise where a reply follows them, so that the tokens of the reply"
PROBE = assistant("\u241f")  # a reply that begins like no control token
MARK = "\u2420"  # and a question like it
# What a template raises: its own refusals, and Python's where it joins a text and something else.
REFUSALS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


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
        _check_template(tokenizer)
        return None
    tokenizer.chat_template = PLAIN_TEMPLATE
    name = tokenizer.name_or_path or "the tokenizer"
    return rf"{name} has no chat template: turns are laid out plainly, as \n\nHuman: ... \n\nAssistant: ..."


def _check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises:
    ConfigError: it is no template at all, whatever the dialogue; what it says of one is for the row to be told.
    """
    template: object = tokenizer.chat_template
    rule = f"model.tokenizer: the chat template of {tokenizer.name_or_path or 'the tokenizer'} must be"
    if isinstance(template, dict):
        if "default" not in template:
            raise ConfigError(f"{rule} one, or several of which one is called default, got {sorted(template)}")
        template = template["default"]
    if not isinstance(template, str) or not template.strip():
        raise ConfigError(f"{rule} a text in Jinja's language, got {template!r:.60}")
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise ConfigError(f"{rule} a text in Jinja's language: line {error.lineno}: {error.message}") from error
    except REFUSALS:
        return


def render(record: Record, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """The text of a record's prompt and of each of its completions, as the tokenizer's chat template lays them out.

    Whitespace around a turn is kept or trimmed as the template has it. Where a template opens a reply otherwise than it
    writes one, as with a "<think>" to begin with, the prompt of a reply is what the two have in common; where it
    writes the question otherwise, as Mistral's does with a system turn, the reply follows the question as it is asked.

    Raises:
        DataError: the template refuses the dialogue, for instance because it knows no system role, or lays out the
            turns before a reply otherwise with it than without.
    """
    if record.template is Template.none:
        return _as_it_is(record, tokenizer)
    wholes = [_whole(record, tokenizer, number) for number in range(len(record.completions))]
    opening = _opening(record, tokenizer, record.prompt, wholes)
    replies = [
        _pieces(record, tokenizer, turns, whole, opening)
        for turns, whole in zip(record.completions, wholes, strict=True)
    ]
    return Rendered(opening.prompt, tuple(replies))


@dataclass(frozen=True, slots=True)
class Opening:
    """Where a reply begins."""

    prompt: str  # what stands before it: what generation is given, or as much of it as a written reply follows
    at: int  # where it begins in the text of prompt and reply


def _opening(
    record: Record, tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], wholes: Sequence[str]
) -> Opening:
    """Of the assistant's next turn, in all of the texts that go on with it."""
    alone = written(record, tokenizer, turns, add_generation_prompt=True)
    if all(whole.startswith(alone) for whole in wholes):
        return Opening(alone, len(alone))
    answered = written(record, tokenizer, [*turns, *PROBE])
    asked = [*turns[:-1], {**turns[-1], "content": MARK}]
    marked = written(record, tokenizer, asked, add_generation_prompt=True)
    replied_to = written(record, tokenizer, [*asked, *PROBE])
    if MARK in _common(marked, replied_to):
        same = _common(alone, answered)
        opening = Opening(same, len(same))
    else:  # the question itself is written otherwise: Mistral's system turn stands within a question without a reply
        header = marked.rpartition(MARK)[2]
        behind = replied_to.rpartition(MARK)[2].partition(PROBE[0]["content"])[0]
        begins = answered.rindex(PROBE[0]["content"]) - len(behind.removeprefix(header))
        opening = Opening(alone, begins if behind.startswith(header) else 0)
    if not opening.at or not all(whole[: opening.at] == answered[: opening.at] for whole in wholes):
        raise _ambiguous(record, OTHERWISE.format(len(turns)))
    return opening


def _ambiguous(record: Record, what: str) -> DataError:
    has_many = any(turn["role"] == "assistant" for turns in record.completions for turn in turns[:-1])
    way = "data.learn=last learns the last reply alone" if has_many else "model.tokenizer=FOLDER takes another's"
    return DataError(record.source, f"the tokenizer's chat template writes {what} cannot be told; {way}")


def _common(one: str, other: str) -> str:
    """With which both begin."""
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def written(record: Record, tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], **how: Any) -> str:
    """These turns with the record's tools, as the template has them; `how` is apply_chat_template's. The arguments of
    calls are objects, or JSON where the template refuses those or would write them in Python's own notation."""
    if not any(turn.get("tool_calls") for turn in turns):
        return _applied(record, tokenizer, turns, **how)
    try:
        text = _applied(record, tokenizer, turns, **how)
    except DataError:
        return _applied(record, tokenizer, with_json(turns), **how)
    return _applied(record, tokenizer, with_json(turns), **how) if spells_python(turns, text) else text


def _applied(record: Record, tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], **how: Any) -> str:
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
    record: Record, tokenizer: PreTrainedTokenizerBase, turns: list[Message], whole: str, first: Opening
) -> tuple[Piece, ...]:
    """A reply's turns, the assistant's and what the template writes between them; `first` is where it begins."""
    places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    befores = [[*record.prompt, *turns[:place]] for place in places]
    openings = [first, *(_opening(record, tokenizer, before, [whole]) for before in befores[1:])]
    for opening, before in zip(openings, befores, strict=True):
        if len(openings) > 1 and not whole.startswith(opening.prompt):
            raise _ambiguous(record, OTHERWISE.format(len(before)))
    begins = [opening.at for opening in openings]
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
    """Where the last of these turns, which begins at `begin`, ends within the longer text `whole`: behind its EOS; of a
    template without one there, where the dialogue up to this turn ends, without the EOS that closes a dialogue."""
    eos = str(tokenizer.eos_token)
    at = whole.find(eos, begin, following)
    if at >= 0:
        return at + len(eos)
    alone = written(record, tokenizer, turns).removesuffix(eos)
    if not whole.startswith(alone) or not begin < len(alone) <= following:
        raise _ambiguous(record, f"turn {len(turns)} otherwise where more follow, so that its end")
    return len(alone)


def _as_it_is(record: Record, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """The texts themselves; an end is the tokens' business, and so is what begins a document, which a text that is laid
    out already may begin with too."""
    prompt = "".join(turn["content"] for turn in record.prompt)
    begin = "" if record.prompt else str(tokenizer.bos_token or tokenizer.eos_token)
    texts = [turns[0]["content"].removeprefix(begin) for turns in record.completions]
    return Rendered(prompt, tuple((Piece(text, True),) for text in texts))


def to_chatml(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns of {from, value} as turns of {role, content}; other turns as they are. The argument is left alone."""
    from trl.data_utils import maybe_convert_to_chatml  # not above: it imports datasets, which is slow

    return maybe_convert_to_chatml({"messages": [dict(turn) for turn in turns]})["messages"]

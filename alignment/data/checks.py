"""What only a tokenizer and its template can tell of a row: whether its texts are texts, whether what it carries is
read, and whether two replies differ in tokens."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.config.vocabulary import Template
from alignment.data.chat import PROBE, written
from alignment.data.records import DataError, Message, Record
from alignment.data.tokenize import Example, Limits

REASONING = ("reasoning_content", "reasoning", "thinking")  # what transformers takes for the same


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """The tokens that a text must not spell: the special ones, and added ones that the template writes."""
    template = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.values()
    kept = {token.content for token in added if token.special or token.content in template}
    spelled = sorted((token for token in kept if token.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spelled)) or "(?!)")


def require_plain_texts(record: Record, control: re.Pattern[str]) -> None:
    """Raises:
    DataError: a text holds half a character, a NUL, or a control token, which would open or close a turn within one;
        texts that no template lays out may hold the last.
    """
    turns = [*record.prompt, *(turn for turns in record.completions for turn in turns)]
    for text in _texts([turns, record.tools, record.template_kwargs]):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = "a text holds half of a character, a lone surrogate: it was cut in the middle of one"
            raise DataError(record.source, what) from error
        if "\0" in text:
            raise DataError(record.source, "a text holds the character NUL")
    if record.template is Template.none and record.prompt:
        return
    for turn in turns:
        found = control.search(turn["content"])
        if found is not None:
            raise DataError(
                record.source,
                f"a text of the {'prompt' if turn in record.prompt else 'reply'} holds the control token "
                f"{found[0]!r}: data.template=none takes texts that are laid out already, data.on_bad_row=skip leaves "
                "such rows out",
            )


def require_read(record: Record, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises:
    DataError: the template leaves out tools, a system or a tool turn, or the calls or the reasoning of a reply; what
        earlier replies have beside their text is the template's to leave out, as Qwen 3 does with reasoning.
    """
    if record.template is Template.none:
        return
    unused = [key for key in record.template_kwargs if key not in str(tokenizer.chat_template)]
    if unused:
        raise _unread(record, f"field `chat_template_kwargs.{unused[0]}`")
    others = [place for place, turn in enumerate(record.prompt) if turn["role"] not in ("user", "assistant")]
    if record.tools or others:
        prompt = written(record, tokenizer, record.prompt, add_generation_prompt=True)
        if record.tools and prompt == written(
            replace(record, tools=()), tokenizer, record.prompt, add_generation_prompt=True
        ):
            raise _unread(record, "field `tools`")
        for place in others:
            turn = record.prompt[place]
            other = [*record.prompt[:place], {**turn, "content": PROBE[0]["content"]}, *record.prompt[place + 1 :]]
            if turn["content"].strip() not in prompt and prompt == written(
                record, tokenizer, other, add_generation_prompt=True
            ):
                raise _unread(record, f"the text of turn {place + 1}, whose role is {turn['role']!r},")
    for turns in record.completions:
        _require_reply_read(record, tokenizer, turns)


def _require_reply_read(record: Record, tokenizer: PreTrainedTokenizerBase, turns: list[Message]) -> None:
    for number, turn in enumerate(turns):
        for keys in (("tool_calls",), REASONING):
            carried = [key for key in keys if turn.get(key)]
            if turn["role"] == "assistant" and turn.get("weight", 1) and carried:
                bare = {key: value for key, value in turn.items() if key not in keys}
                other = [*record.prompt, *turns[:number], bare, *turns[number + 1 :]]
                if written(record, tokenizer, other) == written(record, tokenizer, [*record.prompt, *turns]):
                    raise _unread(record, f"`{carried[0]}` of turn {len(record.prompt) + number + 1}")


def _unread(record: Record, what: str) -> DataError:
    return DataError(
        record.source,
        f"{what} is left out by the tokenizer's chat template: take a model whose template writes it, or remove it "
        "from the row",
    )


def _texts(value: Any) -> Iterator[str]:
    """Every text within lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _texts([key, each])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def require_difference(example: Example, limits: Limits) -> None:
    """Raises:
    DataError: the two replies of a pair do not differ within the limits.
    """
    if len(example.completion_ids) == 2:
        chosen, rejected = (ids.tolist() for ids in example.completion_ids)
        if chosen == rejected:
            rule = f"chosen and rejected are the same within data.max_length = {limits.max_length}"
            raise DataError(example.source, rule)

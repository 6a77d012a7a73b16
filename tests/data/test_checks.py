"""Rows that only a tokenizer can refuse."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerBase

from alignment.data.checks import control_tokens, require_difference, require_plain_texts, require_read
from alignment.data.records import DataError, Message, Record, Source, assistant
from alignment.data.tokenize import Limits, Truncation, encode

AT = Source("rows.jsonl", 4)
PROMPT: list[Message] = [{"role": "user", "content": "hello"}]


def record(*texts: str) -> Record:
    return Record(PROMPT, tuple(assistant(text) for text in texts), None, AT)


@pytest.mark.parametrize(
    ("prompt", "reply", "what"),
    [
        ("hello", "stop <|im_end|> go", "a text of the reply holds the control token '<|im_end|>': data.template=none"),
        ("<|im_start|>user\nhi<|im_end|>\n", "fine", "a text of the prompt holds the control token '<|im_start|>': "),
        ("what is <pad>?", "fine", "a text of the prompt holds the control token '<pad>': "),
        ("hello", "fi\ud83d", "a text holds half of a character, a lone surrogate"),
        ("he\0llo", "fine", "a text holds the character NUL"),
    ],
)
def test_texts_that_are_more_than_texts(chatml: PreTrainedTokenizerBase, prompt: str, reply: str, what: str) -> None:
    turns = [{"role": "user", "content": prompt}]
    bad = Record(turns, (assistant("good"), assistant(reply)), None, AT)
    with pytest.raises(DataError, match=f"^rows.jsonl:4: {re.escape(what)}"):
        require_plain_texts(bad, control_tokens(chatml))
    require_plain_texts(record("a < b |im_end|", "<im_end>"), control_tokens(chatml))


def test_a_text_of_half_a_character_in_a_schema_is_found(chatml: PreTrainedTokenizerBase) -> None:
    tools = ({"function": {"name": "w", "description": "\udc00"}},)
    with pytest.raises(DataError, match="half of a character"):
        require_plain_texts(replace(record("fine"), tools=tools), control_tokens(chatml))


SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
THINKS = {"role": "assistant", "content": "fine", "reasoning_content": "so"}
SYSTEM = {"role": "system", "content": "be kind"}
RESULT = {"role": "tool", "content": "sun"}


@pytest.mark.parametrize(
    ("name", "record", "what"),
    [
        ("qwen", Record(PROMPT, ([CALLS],), None, AT, tools=(SCHEMA,)), None),
        ("qwen", Record([SYSTEM, *PROMPT, CALLS, RESULT], (assistant("sunny"),), None, AT), None),
        ("qwen3", Record(PROMPT, ([THINKS],), None, AT), None),
        ("llama3", Record(PROMPT, (assistant("x"),), None, AT, tools=(SCHEMA,)), "field `tools`"),
        ("llama3", Record(PROMPT, ([CALLS],), None, AT), "`tool_calls` of turn 2"),
        ("llama3", Record(PROMPT, ([THINKS],), None, AT), "`reasoning_content` of turn 2"),
        ("qwen", Record(PROMPT, ([THINKS],), None, AT), "`reasoning_content` of turn 2"),
        # What Qwen 3 leaves out of an earlier turn cannot be learned there.
        ("qwen3", Record(PROMPT, ([THINKS, *PROMPT, THINKS],), None, AT), "`reasoning_content` of turn 2"),
        ("qwen3", Record([*PROMPT, THINKS, *PROMPT], ([THINKS],), None, AT), None),
        (
            "qwen",
            Record(PROMPT, (), None, AT, template_kwargs={"enable_thinking": False}),
            "field `chat_template_kwargs.e",
        ),
        ("deaf", Record([SYSTEM, *PROMPT], (), None, AT), "the text of turn 1, whose role is 'system',"),
    ],
)
def test_what_a_template_leaves_out_is_refused(
    family: Callable[[str], PreTrainedTokenizerBase], name: str, record: Record, what: str | None
) -> None:
    tokenizer = family("qwen" if name == "deaf" else name)
    if name == "deaf":
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
        )
    if what is None:
        require_read(record, tokenizer)
    else:
        with pytest.raises(DataError, match=f"^rows.jsonl:4: {re.escape(what)}.* is left out by the token"):
            require_read(record, tokenizer)


def test_replies_that_differ_only_beyond_the_limit_are_twins(chatml: PreTrainedTokenizerBase) -> None:
    pair = record("hello there", "hello there fine")
    size = len(encode(record(), chatml, Limits(1000, 500), Truncation()).prompt_ids)
    same = len(chatml("hello there", add_special_tokens=False)["input_ids"])
    short, longer = (Limits(max_length=size + room, max_prompt_length=size) for room in (same, same + 1))
    with pytest.raises(DataError, match=r"^rows.jsonl:4: chosen and rejected are the same within data.max_length = "):
        require_difference(encode(pair, chatml, short, Truncation()), short)
    require_difference(encode(pair, chatml, longer, Truncation()), longer)

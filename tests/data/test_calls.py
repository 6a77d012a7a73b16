"""The arguments of calls: objects or their JSON in a file, and either to a template."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from alignment.config.data import ExampleKind, Format
from alignment.data.chat import render
from alignment.data.formats import parse
from alignment.data.records import DataError, Record, Source

AT = Source("rows.jsonl", 4)
ARGUMENTS = {"city": "Róma", "days": 2}
JSON = '{"city": "Róma", "days": 2}'
SHAPES: dict[str, Any] = {
    "objects": ARGUMENTS,
    "JSON, as OpenAI's files have them": '{"city":"R\\u00f3ma","days":2}',
    "JSON over lines": '{\n "city": "Róma",\n "days": 2\n}\n',
}
WRITES = "{% for m in messages %}{{ m['role'] }}: "
WRITES += "{% if m['tool_calls'] %}{{ CALL }}{% else %}{{ m['content'] }}{% endif %}"
WRITES += "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
TEMPLATES = {  # how templates write a call's arguments
    "as JSON of an object": "m['tool_calls'][0]['function']['arguments'] | tojson",
    "as the text that they are": "'' + m['tool_calls'][0]['function']['arguments']",
    "as whatever they are": "m['tool_calls'][0]['function']['arguments']",
}


def demonstration(arguments: Any) -> Record:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    return parse({"messages": turns}, AT, Format.messages, ExampleKind.demonstrations, lambda *_: None)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_each_template_gets_the_arguments_that_it_was_made_for(
    family: Callable[[str], PreTrainedTokenizerBase], template: str, shape: str
) -> None:
    """Neither the JSON of a text, "{\\"city\\": ...}", nor Python's notation, {'city': ...}, nor a refusal."""
    tokenizer = family("qwen")
    tokenizer.chat_template = WRITES.replace("CALL", TEMPLATES[template])
    assert render(demonstration(SHAPES[shape]), tokenizer).texts() == (JSON,)


def test_a_call_without_arguments(family: Callable[[str], PreTrainedTokenizerBase]) -> None:
    tokenizer = family("qwen")
    for template in TEMPLATES.values():
        tokenizer.chat_template = WRITES.replace("CALL", template)
        assert {render(demonstration(none), tokenizer).texts() for none in ({}, "{}", "", None)} == {("{}",)}


@pytest.mark.parametrize("arguments", ["city=Roma", "[1]", 3, '{"city": '])
def test_arguments_that_are_no_object_are_a_bad_row(arguments: Any) -> None:
    with pytest.raises(DataError, match=r"^rows.jsonl:4: messages\[1\]: tool_calls must be a list of calls, their arg"):
        demonstration(arguments)


def test_a_call_in_the_older_form_of_sharegpt() -> None:
    text = '{"name": "weather", "arguments": "{\\"days\\": 2}"}'
    turns = [{"from": "human", "value": "?"}, {"from": "function_call", "value": text}]
    row = {"conversations": turns}
    (reply,) = parse(row, AT, Format.sharegpt, ExampleKind.demonstrations, lambda *_: None).completions[0]
    assert reply["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"days": 2}}

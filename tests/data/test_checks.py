"""Rows that only a tokenizer can refuse."""

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerBase

from alignment.config.data import Template
from alignment.config.errors import ConfigError
from alignment.data.chat import ensure_template, render
from alignment.data.checks import (
    leaves_out_calls,
    require_difference,
    require_plain_texts,
    require_read,
    signs_of,
)
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
        require_plain_texts(bad, signs_of(chatml, Template.chat))
    require_plain_texts(record("a < b |im_end|", "<im_end>"), signs_of(chatml, Template.chat))


def test_what_separates_steps_may_be_a_token_that_no_turn_is_made_of(chatml: PreTrainedTokenizerBase) -> None:
    """As Qwen's process reward models have "<extra_0>"; not in a question, where it would be another thing."""
    tokenizer = deepcopy(chatml)
    tokenizer.add_tokens(["<extra_0>"], special_tokens=True)
    signs = signs_of(tokenizer, Template.chat, "<extra_0>")
    require_plain_texts(record("one <extra_0>two"), signs)
    for text, question, told in (
        ("one <extra_0>two", "what is <extra_0>?", "the prompt holds the control token '<extra_0>'"),
        ("one <extra_0>two<|im_end|>", "hello", re.escape("the reply holds the control token '<|im_end|>'")),
    ):
        with pytest.raises(DataError, match=told):
            require_plain_texts(replace(record(text), prompt=[{"role": "user", "content": question}]), signs)
    with pytest.raises(DataError, match="the reply holds the control token '<extra_0>'"):
        require_plain_texts(record("one <extra_0>two"), signs_of(tokenizer, Template.chat, "\n"))
    for token in ("<|im_end|>", "\n<|im_start|>", "<pad>"):
        told = rf"^ptx\.data\.step_separator must be .* {re.escape(repr(token.strip()))} opens or closes a turn, got "
        with pytest.raises(ConfigError, match=told):
            signs_of(tokenizer, Template.chat, token, "ptx.data.step_separator")


def test_texts_that_are_laid_out_already_may_spell_what_lays_them_out(chatml: PreTrainedTokenizerBase) -> None:
    for template in Template:
        document = Record([], (assistant("<|im_start|>user\nhi<|im_end|>"),), None, AT, template=Template.none)
        if template is Template.none:
            require_plain_texts(document, signs_of(chatml, template))
        else:
            with pytest.raises(DataError, match="holds the control token"):
                require_plain_texts(document, signs_of(chatml, template))


@pytest.mark.parametrize(
    ("name", "text", "opens"),
    [
        ("plain", "\n\nHuman: hi\n\nAssistant:", "Human:"),
        ("plain", "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: so?\n\nAssistant:", "Human:"),
        ("llama2", "[INST] hi [/INST]", "[INST]"),
        ("plain", "Human: is a name", None),
        ("plain", "what is Human: ... Assistant: ?", None),
        ("llama2", "what do [INST] and [/INST] mean?", None),
    ],
)
def test_a_question_that_is_laid_out_already_in_plain_text(
    family: Callable[[str], PreTrainedTokenizerBase], name: str, text: str, opens: str | None
) -> None:
    """No token tells these marks from a text: the template would write them once more around them."""
    tokenizer = family("llama2")
    if name == "plain":
        tokenizer.chat_template, tokenizer.bos_token = None, None
        ensure_template(tokenizer)
    asked, signs = Record([{"role": "user", "content": text}], (), None, AT), signs_of(tokenizer, Template.chat)
    if opens is None:
        require_plain_texts(asked, signs)
    else:
        what = f"rows.jsonl:4: a text of the prompt is laid out already, from {opens!r} to where "
        with pytest.raises(DataError, match=f"^{re.escape(what)}"):
            require_plain_texts(asked, signs)


def test_what_a_reply_is_made_of_is_no_control_token(family: Callable[[str], PreTrainedTokenizerBase]) -> None:
    """Qwen 3 writes "<think>" itself, and reads it in a reply's text; a turn's own mark is one, special or not."""
    tokenizer = family("qwen3")
    tokenizer.add_tokens(["<think>", "</think>", "[turn]"])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "[turn]")
    signs = signs_of(tokenizer, Template.chat)
    require_plain_texts(record("<think>\nso\n</think>\n\nfine"), signs)
    with pytest.raises(DataError, match=r"the reply holds the control token '\[turn\]'"):
        require_plain_texts(record("fine [turn]"), signs)


def test_a_text_of_half_a_character_in_a_schema_or_a_tag_is_found(chatml: PreTrainedTokenizerBase) -> None:
    tools = ({"function": {"name": "w", "description": "\udc00"}},)
    for bad in (replace(record("fine"), tools=tools), replace(record("fine"), tags=("safety", "\ud83d"))):
        with pytest.raises(DataError, match="half of a character"):
            require_plain_texts(bad, signs_of(chatml, Template.chat))


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
        # As it would be where a template writes that there was reasoning, whatever it was (Nemotron 3).
        ("empties", Record(PROMPT, ([THINKS, *PROMPT, THINKS],), None, AT), "`reasoning_content` of turn 2"),
        ("empties", Record([*PROMPT, THINKS, *PROMPT], ([THINKS],), None, AT), None),
        # What the reply follows is read all the same, but for calls; the name of a tool is in its call.
        ("llama3", Record([*PROMPT, CALLS, *PROMPT], (assistant("x"),), None, AT), None),
        ("llama3", Record(PROMPT, ([{**CALLS, "weight": 0}, *PROMPT, *assistant("x")],), None, AT), None),
        ("qwen", Record([{**PROMPT[0], "name": "Bob"}], (assistant("x"),), None, AT), "`name` of turn 1"),
        ("qwen", Record(PROMPT, ([{**assistant("x")[0], "name": "Eve"}],), None, AT), "`name` of turn 2"),
        ("named", Record([{**PROMPT[0], "name": "Bob"}], (assistant("x"),), None, AT), None),
        ("qwen", Record([*PROMPT, CALLS, {**RESULT, "name": "weather"}], (assistant("x"),), None, AT), None),
        # Mistral's refuses a result without a call before it.
        ("strict", Record([*PROMPT, CALLS, RESULT], (assistant("x"),), None, AT), None),
        (
            "qwen",
            Record(PROMPT, (), None, AT, template_kwargs={"enable_thinking": False}),
            "field `chat_template_kwargs.e",
        ),
        ("deaf", Record([SYSTEM, *PROMPT], (), None, AT), "the text of turn 1, whose role is 'system',"),
        # DeepSeek R1 takes the reasoning out of every reply, Llama 3.1 the words beside a call.
        (
            "forgets",
            Record(PROMPT, (assistant("<think>so</think>fine"),), None, AT),
            "some of the text of turn 2, '<think>",
        ),
        ("forgets", Record(PROMPT, (assistant(" fine\n"),), None, AT), None),
        ("opens", Record(PROMPT, (assistant("<think>\nso</think>fine"),), None, AT), None),  # the prompt has the first
        ("qwen", Record(PROMPT, ([{**CALLS, "content": "let me see"}],), None, AT), None),
    ],
)
def test_what_a_template_leaves_out_is_refused(
    family: Callable[[str], PreTrainedTokenizerBase], name: str, record: Record, what: str | None
) -> None:
    tokenizer = family({"llama3": "llama3", "qwen3": "qwen3", "empties": "qwen3"}.get(name, "qwen"))
    if name == "empties":
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "{{ message['content'] +",
            "{% if message['reasoning_content'] and loop.index0 < at.last %}"
            "{{ '<think></think>' }}{% endif %}{{ message['content'] +",
        )
    if name == "named":
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "message['role'] + '\n' +", "message['role'] + (message['name'] or '') + '\n' +"
        )
    if name == "strict":
        tokenizer.chat_template = (
            "{% if messages[2] and messages[2]['role'] == 'tool' and messages[1]['tool_calls'][0] is not mapping %}"
            "{{ raise_exception('a result without a call') }}{% endif %}" + tokenizer.chat_template
        )
    if name == "opens":
        tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    if name == "forgets":
        tokenizer = family("qwen")
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "message['content']", "message['content'].split('</think>')[-1] | trim"
        )
    if name == "deaf":
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
        )
    if what is None:
        require_read(record, tokenizer, render(record, tokenizer))
    else:
        with pytest.raises(DataError, match=f"^rows.jsonl:4: {re.escape(what)}.* is left out by the token"):
            require_read(record, tokenizer, render(record, tokenizer))


@pytest.mark.parametrize(("name", "is_left_out"), [("llama3", True), ("qwen", False)])
def test_calls_that_a_template_does_not_know_are_known(
    family: Callable[[str], PreTrainedTokenizerBase], name: str, is_left_out: bool
) -> None:
    asked = Record([*PROMPT, CALLS, *PROMPT], (assistant("x"),), None, AT)
    unlearned = Record(PROMPT, ([{**CALLS, "weight": 0}, *PROMPT, *assistant("x")],), None, AT)
    for each in (asked, unlearned, replace(asked, completions=())):
        assert leaves_out_calls(each, family(name)) is is_left_out
        assert not leaves_out_calls(replace(each, template=Template.none), family(name))
    assert not leaves_out_calls(Record(PROMPT, (assistant("x"),), None, AT), family(name))


CLOSES = "so <|im_end|> and"


def calls(name: str, arguments: dict[str, object]) -> Message:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("name", "bad", "where"),
    [
        ("qwen3", Record(PROMPT, ([{**THINKS, "reasoning_content": CLOSES}],), None, AT), "a text of the reply"),
        ("qwen", Record(PROMPT, ([calls("w", {"city": [CLOSES]})],), None, AT), "a text of the reply"),
        ("qwen", Record(PROMPT, ([calls(CLOSES, {})],), None, AT), "a text of the reply"),
        ("qwen", Record([*PROMPT, calls("w", {CLOSES: 1}), RESULT], (), None, AT), "a text of the prompt"),
        ("qwen", Record(PROMPT, (), None, AT, tools=({"description": CLOSES},)), "a text of field `tools`"),
        (
            "qwen",
            Record(PROMPT, (), None, AT, template_kwargs={"documents": [CLOSES]}),
            "a text of field `chat_template_kwargs`",
        ),
    ],
)
def test_a_control_token_is_one_wherever_the_template_writes_it(
    family: Callable[[str], PreTrainedTokenizerBase], name: str, bad: Record, where: str
) -> None:
    """The reply would be cut at the first of them."""
    with pytest.raises(DataError, match=f"^rows.jsonl:4: {where} holds the control token '<.im_end.>': "):
        require_plain_texts(bad, signs_of(family(name), Template.chat))


def test_what_a_template_does_not_read_may_hold_anything(family: Callable[[str], PreTrainedTokenizerBase]) -> None:
    kept = Record([{**PROMPT[0], "raw": CLOSES}], ([{**THINKS, "raw": CLOSES}],), None, AT)
    require_plain_texts(kept, signs_of(family("qwen3"), Template.chat))


def test_replies_that_differ_only_beyond_the_limit_are_twins(chatml: PreTrainedTokenizerBase) -> None:
    pair = record("hello there", "hello there fine")
    size = len(encode(record(), chatml, Limits(1000, 500), Truncation()).prompt_ids)
    same = len(chatml("hello there", add_special_tokens=False)["input_ids"])
    short, longer = (Limits(max_length=size + room, max_prompt_length=size) for room in (same, same + 1))
    with pytest.raises(DataError, match=r"^rows.jsonl:4: chosen and rejected are the same within data.max_length = "):
        require_difference(encode(pair, chatml, short, Truncation()), short)
    require_difference(encode(pair, chatml, longer, Truncation()), longer)


@pytest.mark.parametrize("role", ["User", "prompter", "model"])
def test_a_role_that_nobody_knows_is_refused(family: Callable[[str], PreTrainedTokenizerBase], role: str) -> None:
    """ChatML would write it into the header; a role that the template names is its own to judge."""
    tokenizer, bad = family("qwen"), Record([{"role": role, "content": "hello"}], (assistant("fine"),), None, AT)
    with pytest.raises(DataError, match=f"^rows.jsonl:4: the role of turn 1 must be one of .*, got '{role}'$"):
        require_read(bad, tokenizer, render(bad, tokenizer))
    tokenizer.chat_template = "{# " + role + " #}" + tokenizer.chat_template
    require_read(bad, tokenizer, render(bad, tokenizer))

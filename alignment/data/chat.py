"""Dialogues to text: the door to the tokenizer's chat template and to trl's handling of conversations."""

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.data_utils import apply_chat_template, maybe_convert_to_chatml

from alignment.data.records import DataError, Message, Record

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
COLUMNS: tuple[tuple[str, ...], ...] = ((), ("completion",), ("chosen", "rejected"))


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


def render(record: Record, tokenizer: PreTrainedTokenizerBase) -> tuple[str, tuple[str, ...]]:
    """The text of a record's prompt, up to where the reply begins, and of each completion, with what ends it.

    Whitespace around a turn is kept or trimmed as the template has it. Where a template lays out a prompt differently
    alone than before a reply, the prompt is what the two have in common (trl's rule).

    Raises:
        DataError: the template refuses the dialogue, for instance because it knows no system role.
    """
    columns = COLUMNS[len(record.completions)]
    example: dict[str, list[Message]] = {"prompt": record.prompt}
    for column, text in zip(columns, record.completions, strict=True):
        example[column] = [{"role": "assistant", "content": text}]
    try:
        texts = apply_chat_template(example, tokenizer)
    except TemplateError as error:
        raise DataError(record.source, f"the tokenizer's chat template refuses the dialogue: {error}") from error
    return texts["prompt"], tuple(texts[column] for column in columns)


def to_chatml(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns of {from, value} as turns of {role, content}; other turns as they are. The argument is left alone."""
    return maybe_convert_to_chatml({"messages": [dict(turn) for turn in turns]})["messages"]

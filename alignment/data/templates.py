"""Chat templates by name, or a user's file's, in place of a tokenizer's own: checked by laying out a dialogue."""

import re
from pathlib import Path

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from alignment.config.chat_template import ChatTemplate
from alignment.config.errors import ConfigError
from alignment.config.folders import require_fetched
from alignment.data.chat import PLAIN_TEMPLATE, PROBE, REFUSALS

# A text that begins a document does so with BOS, which is not written twice where a turn begins with the same token.
CHATML = (
    "{%- if bos_token and bos_token != '<|im_start|>' -%}{{ bos_token }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
LLAMA3 = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] | trim) }}"
    "{{ '<|eot_id|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"
)
ZEPHYR = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)
# Gemma and Mistral have no system turn: its text begins the first question.
SYSTEM_FIRST = (
    "{%- set has_system = messages[0]['role'] == 'system' -%}"
    "{%- set system = (messages[0]['content'] | trim) + '\\n\\n' if has_system else '' -%}"
    "{%- set turns = messages[1:] if has_system else messages -%}"
    "{{- bos_token -}}"
    "{%- for message in turns -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('the roles must be user, assistant, user, ..., got ' + message['role']) }}{%- endif -%}"
    "{%- set content = (system if loop.first else '') + (message['content'] | trim) -%}"
)
GEMMA = (
    f"{SYSTEM_FIRST}"
    "{%- set role = 'model' if message['role'] == 'assistant' else 'user' -%}"
    "{{ '<start_of_turn>' + role + '\\n' + content + '<end_of_turn>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
MISTRAL = (
    f"{SYSTEM_FIRST}"
    "{%- if message['role'] == 'user' -%}{{ '[INST] ' + content + ' [/INST]' }}"
    "{%- else -%}{{ ' ' + content + eos_token }}{%- endif -%}"
    "{%- endfor -%}"
)
TEMPLATES = {
    ChatTemplate.chatml: CHATML,
    ChatTemplate.llama3: LLAMA3,
    ChatTemplate.zephyr: ZEPHYR,
    ChatTemplate.gemma: GEMMA,
    ChatTemplate.mistral: MISTRAL,
    ChatTemplate.plain: PLAIN_TEMPLATE,
}
CONTROL = re.compile(r"<\|?\w+\|?>")  # how families spell the tokens that end a turn
QUESTION = "\u2420"


def replace_template(tokenizer: PreTrainedTokenizerBase, chosen: str) -> str:
    """Give a tokenizer another chat template.

    Args:
        chosen: a name of `TEMPLATES`, or a file.

    Returns:
        The sentence to tell the user.

    Raises:
        ConfigError: the file is no template, the template lays no dialogue out, or the tokenizer lacks the token with
            which it ends a turn; names `model.chat_template`.
    """
    key = f"model.chat_template={chosen}"
    is_name = chosen in [each.value for each in ChatTemplate]
    text = TEMPLATES[ChatTemplate(chosen)] if is_name else _read(Path(chosen))
    name = tokenizer.name_or_path or "the tokenizer"
    before, tokenizer.chat_template = tokenizer.chat_template, text
    behind = _written(tokenizer, key).rpartition(PROBE[0]["content"])[2]
    end = CONTROL.search(behind)
    vocabulary = tokenizer.get_vocab()
    if end is not None and end[0] not in vocabulary:
        rule = f"{key}: {end[0]!r}, with which the template ends a turn, must be a token of {name}"
        way = "mistral, zephyr and plain end one with the tokenizer's own end of sequence"
        raise ConfigError(f"{rule}: letter by letter it would not end a reply ({way}, {tokenizer.eos_token!r})")
    what = "the template of that name" if is_name else "that file"
    return f"{key}: {what} lays turns out" + (f", in place of the one of {name}" if before is not None else "")


def _read(file: Path) -> str:
    require_fetched(file, f"model.chat_template: {str(file)!r}")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"model.chat_template must be a text in UTF-8, got {str(file)!r}") from error


def _written(tokenizer: PreTrainedTokenizerBase, key: str) -> str:
    """A question and a reply, laid out."""
    dialogue = [{"role": "user", "content": QUESTION}, *PROBE]
    try:
        text = str(tokenizer.apply_chat_template(dialogue, tokenize=False))
    except TemplateSyntaxError as error:
        raise ConfigError(f"{key} must be a text in Jinja's language: line {error.lineno}: {error.message}") from error
    except REFUSALS as error:
        raise ConfigError(f"{key} must lay out a question and a reply, and it raises {error}") from error
    if QUESTION not in text or PROBE[0]["content"] not in text:
        raise ConfigError(f"{key} must write the text of a question and of a reply, got {text!r:.80}")
    return text

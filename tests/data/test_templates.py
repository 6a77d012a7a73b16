"""Chat templates by name lay a dialogue out as their families have published it; a file's is tried first."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alignment.config.chat_template import ChatTemplate
from alignment.config.errors import ConfigError
from alignment.config.inputs import check_inputs, input_paths
from alignment.config.model import ModelConfig
from alignment.data.templates import TEMPLATES, replace_template
from alignment.models.tokenizer import prepare_tokenizer

U, A, S = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("system", "s")))
Family = Callable[[str], PreTrainedTokenizerBase]
WRITTEN = {  # tokenizer of a family, template: system, question, reply, question, and a reply to come
    ("qwen", "chatml"): "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
    "<|im_start|>assistant\na<|im_end|>\n"
    "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
    ("llama3", "llama3"): "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ("zephyr", "zephyr"): "<|system|>\ns</s>\n<|user|>\nq</s>\n<|assistant|>\na</s>\n<|user|>\nq</s>\n<|assistant|>\n",
    ("gemma", "gemma"): "<bos><start_of_turn>user\ns\n\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n"
    "<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n",
    ("mistral", "mistral"): "<s>[INST] s\n\nq [/INST] a</s>[INST] q [/INST]",
    ("llama2", "plain"): "<s>\n\nSystem: s\n\nHuman: q\n\nAssistant: a</s>\n\nHuman: q\n\nAssistant:",
}  # fmt: skip


@pytest.mark.parametrize(("name", "template"), WRITTEN)
def test_templates_by_name(name: str, template: str, family: Family) -> None:
    tokenizer = family(name)
    line = replace_template(tokenizer, template)
    assert line.startswith(f"model.chat_template={template}: the template of that name lays turns out, in place of ")
    text = tokenizer.apply_chat_template([S, U, A, U], tokenize=False, add_generation_prompt=True)
    assert text == WRITTEN[name, template]
    alone = tokenizer.apply_chat_template([U], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template([U, A], tokenize=False).startswith(alone)


def test_each_name_has_a_template() -> None:
    assert set(TEMPLATES) == set(ChatTemplate)


@pytest.mark.parametrize("template", ["chatml", "llama3", "gemma"])
def test_a_turn_must_end_with_a_token(template: str, family: Family) -> None:
    ends = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}
    rule = (
        f"model.chat_template={template}: {ends[template]!r}, with which the template ends a turn, must be a token of "
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(rule)}.*mistral, zephyr and plain .*, '</s>'\\)$"):
        replace_template(family("llama2"), template)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{% for message in messages %}", "must be a text in Jinja's language: line 1: "),
        ("{{ messages[0]['content'] }}", "must write the text of a question and of a reply, got "),
        ("{{ raise_exception('no roles') }}", "must lay out a question and a reply, and it raises no roles"),
    ],
)
def test_a_file_that_is_no_template(text: str, what: str, tmp_path: Path, family: Family) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"model.chat_template={file} {what}")):
        replace_template(family("llama2"), str(file))
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"^model\.chat_template must be a text in UTF-8, got "):
        replace_template(family("llama2"), str(file))


def test_it_is_saved_with_the_tokenizer(
    tmp_path: Path, tiny_init: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}")
    model = ModelConfig(init=tiny_init, chat_template=str(file))
    prepare_tokenizer(model).save_pretrained(tmp_path / "saved")
    assert "model.chat_template=" in capsys.readouterr().out
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.apply_chat_template([U, A], tokenize=False) == f"user: q{again.eos_token}assistant: a{again.eos_token}"


def test_a_name_is_no_file_and_a_file_is_an_input(tmp_path: Path, tiny_init: dict[str, object]) -> None:
    assert list(input_paths(ModelConfig(init=tiny_init, chat_template="chatml"))) == []
    model = ModelConfig(init=tiny_init, chat_template=str(tmp_path / "own.jinja"))
    assert list(input_paths(model)) == [("chat_template", str(tmp_path / "own.jinja"))]
    with pytest.raises(ConfigError, match="no such file or folder"):
        check_inputs(model)
    with pytest.raises(
        ConfigError, match=r"must be a file or one of chatml, .* got 'chatlm' \(did you mean 'chatml'\?\)$"
    ):
        ModelConfig(init=tiny_init, chat_template="chatlm")

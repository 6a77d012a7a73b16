import re

import pytest
from transformers import PreTrainedTokenizerBase

from alignment.data.chat import ensure_template, render, to_chatml
from alignment.data.records import DataError, Message, Record, Source, assistant

AT = Source("rows.jsonl", 4)
PROMPT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " Hello "},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "How are you?"},
]
PLAIN = "<s>\n\nSystem: Be kind.\n\nHuman: Hello\n\nAssistant: Hi!</s>\n\nHuman: How are you?\n\nAssistant:"


def rendered(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], *texts: str) -> tuple[str, tuple[str, ...]]:
    found = render(Record(prompt, tuple(assistant(text) for text in texts), None, AT), tokenizer)
    return found.prompt, found.texts()


def test_the_plain_template_word_for_word(llama2: PreTrainedTokenizerBase) -> None:
    assert rendered(llama2, PROMPT) == (PLAIN, ())
    assert rendered(llama2, PROMPT, " Fine. \n") == (PLAIN, (" Fine.</s>",))
    assert rendered(llama2, PROMPT, "Fine.", "Fi") == (PLAIN, (" Fine.</s>", " Fi</s>"))


def test_a_prompt_is_a_prefix_of_its_dialogue(llama2: PreTrainedTokenizerBase) -> None:
    open_prompt = llama2.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    dialogue = [*PROMPT, {"role": "assistant", "content": "Fine."}]
    assert llama2.apply_chat_template(dialogue, tokenize=False) == f"{open_prompt} Fine.</s>"


def test_without_a_bos_token_none_is_written(chatml: PreTrainedTokenizerBase) -> None:
    chatml.chat_template = None
    assert ensure_template(chatml) is not None
    prompt, (reply,) = rendered(chatml, PROMPT[1:2], "x")
    assert (prompt, reply) == ("\n\nHuman: Hello\n\nAssistant:", " x<|im_end|>")


def test_the_template_is_set_once_and_said_once(llama2: PreTrainedTokenizerBase) -> None:
    llama2.chat_template = None
    sentence = ensure_template(llama2)
    assert sentence is not None
    assert sentence.endswith(
        r"llama2 has no chat template: turns are laid out plainly, as \n\nHuman: ... \n\nAssistant: ..."
    )
    assert ensure_template(llama2) is None


def test_a_template_of_its_own_is_left_alone(chatml: PreTrainedTokenizerBase) -> None:
    before = chatml.chat_template
    assert ensure_template(chatml) is None
    assert chatml.chat_template == before
    prompt, replies = rendered(chatml, PROMPT[1:2], " a ", "b")
    assert prompt == "<|im_start|>user\n Hello <|im_end|>\n<|im_start|>assistant\n"
    assert replies == (" a <|im_end|>\n", "b<|im_end|>\n")


def test_what_a_template_refuses_is_a_bad_row(chatml: PreTrainedTokenizerBase) -> None:
    chatml.chat_template = "{{ raise_exception('no system role') }}"
    what = "rows.jsonl:4: the tokenizer's chat template refuses the dialogue: no system role"
    with pytest.raises(DataError, match=f"^{re.escape(what)}$"):
        rendered(chatml, PROMPT, "a")


@pytest.mark.parametrize(
    ("turns", "way"),
    [
        (["a reply"], r"model\.tokenizer=FOLDER takes another's$"),
        (["a reply", "q", "b"], r"data\.learn=last learns the last reply alone$"),
    ],
)
def test_a_reply_that_cannot_be_told_has_a_way_out_that_leads_out(
    chatml: PreTrainedTokenizerBase, turns: list[str], way: str
) -> None:
    """A template that counts letters, or tells the time, writes no two texts that begin alike."""
    chatml.chat_template = "{{ messages | map(attribute='content') | join | length }}" + str(chatml.chat_template)
    roles = ("assistant", "user")
    reply = [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]
    with pytest.raises(DataError, match=rf"writes the first \d turns otherwise .* cannot be told; {way}"):
        render(Record(PROMPT, (reply,), None, AT), chatml)


def test_turns_in_sharegpt_form() -> None:
    turns = [{"from": "human", "value": "q"}, {"role": "assistant", "content": "a"}]
    assert to_chatml(turns) == [{"role": "human", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert turns[0] == {"from": "human", "value": "q"}

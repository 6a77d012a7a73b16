"""The shipped tokenizer: any text round-trips, each word of the toy task is one token, a prompt begins its dialogue."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alignment.toy import demonstrations, tokenizer_path
from alignment.toy.language import toy_words

DIALOGUE = [
    {"role": "system", "content": "you are a guide ."},
    {"role": "user", "content": "what does the small brown fox do ?"},
    {"role": "assistant", "content": "the small brown fox hunts in the forest ."},
    {"role": "user", "content": "thank you"},
    {"role": "assistant", "content": "enjoy your visit ."},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tokenizer_path())


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox can't jump; it's 3.14 o'clock, isn't it?",
        " two  leading\n\n\tand trailing spaces  ",
        "the fox hunts . i hope this helps .",
        "你好，请介绍一下狐狸。它住在哪里？",
        "🦊 naïve 👩‍👩‍👧 – “quoted”",
        "",
    ],
)
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(ids(tokenizer, text)) == text
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_word_of_the_toy_task_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    words = toy_words()
    assert [word for word in words if len(ids(tokenizer, word)) != 1 or len(ids(tokenizer, f" {word}")) != 1] == []
    for row in demonstrations(300, 0, "train"):
        assert len(ids(tokenizer, row["completion"])) == len(row["completion"].split())


def test_size_and_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    roles = [tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ("user", "assistant", "system")]
    assert [*special, *roles] == [0, 1, 2, 3, 4, 5]
    assert len(tokenizer) == 2048
    assert ids(tokenizer, "<|user|>the fox</s>") == [3, *ids(tokenizer, "the fox"), 2]
    assert sum(path.stat().st_size for path in tokenizer_path().iterdir()) < 200_000


@pytest.mark.parametrize("turns", [2, 3, 5])
def test_the_prompt_is_a_prefix_of_the_dialogue(tokenizer: PreTrainedTokenizerBase, turns: int) -> None:
    messages = DIALOGUE[:turns] if turns != 2 else DIALOGUE[1:3]
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole == f"{prompt}{messages[-1]['content']}</s>"
    assert ids(tokenizer, whole) == ids(tokenizer, prompt) + ids(tokenizer, messages[-1]["content"]) + [2]


def test_the_template_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.apply_chat_template(DIALOGUE, tokenize=False) == (
        "<|system|>you are a guide .<|user|>what does the small brown fox do ?"
        "<|assistant|>the small brown fox hunts in the forest .</s><|user|>thank you<|assistant|>enjoy your visit .</s>"
    )
    with pytest.raises(Exception, match="role must be system, user or assistant, got tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)

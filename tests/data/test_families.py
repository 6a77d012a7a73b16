"""What the published layouts make of a dialogue: token for token as apply_chat_template has it."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from alignment.data.records import Message, Record, Source, assistant, replied
from alignment.data.tokenize import Example, Limits, Truncation, encode

FAMILIES = ["llama2", "llama3", "qwen", "qwen3", "gemma", "phi3", "mistral", "zephyr"]
AT = Source("rows.jsonl", 4)
WIDE = Limits(max_length=4000, max_prompt_length=2000)
PROMPT: list[Message] = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello there"},
    {"role": "user", "content": "how are you?"},
]
ENDS = {
    "llama2": " fine. </s>",
    "llama3": "fine.<|eot_id|>",
    "qwen": "fine.<|im_end|>",
    "qwen3": "<think>\n\n</think>\n\nfine.<|im_end|>",
    "gemma": "fine.<end_of_turn>\n<eos>",
    "phi3": "fine.<|end|>\n<|endoftext|>",
    "mistral": " fine.</s>",
    "zephyr": "fine.</s>",
}
Family = Callable[[str], PreTrainedTokenizerBase]


def encoded(record: Record, tokenizer: PreTrainedTokenizerBase) -> Example:
    return encode(record, tokenizer, WIDE, Truncation())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_ends_as_the_family_has_it(family: Family, name: str) -> None:
    tokenizer = family(name)
    example = encoded(Record(PROMPT, (assistant("fine."),), None, AT), tokenizer)
    prompt = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(example.prompt_ids) == prompt
    assert tokenizer.decode(example.completion_ids[0]) == ENDS[name]
    assert example.finished == (True,) and example.learned is None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_that_was_drawn_is_laid_out_as_one_that_is_learned(family: Family, name: str) -> None:
    tokenizer = family(name)
    prompt = Record(PROMPT, (), None, AT, tags=("safety",))
    learned = encoded(Record(PROMPT, (assistant("fine."), assistant("hello")), None, AT), tokenizer)
    drawn = encoded(replied(prompt, ["fine.", "hello"], [True, True]), tokenizer)
    assert drawn.prompt_ids.tolist() == learned.prompt_ids.tolist()
    assert [ids.tolist() for ids in drawn.completion_ids] == [ids.tolist() for ids in learned.completion_ids]
    assert (drawn.finished, drawn.tags) == ((True, True), ("safety",))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_that_was_cut_ends_with_its_own_last_token(family: Family, name: str) -> None:
    tokenizer = family(name)
    cut = encoded(replied(Record(PROMPT, (), None, AT), ["fine.", "fine."], [False, True]), tokenizer)
    assert tokenizer.decode(cut.completion_ids[0]) == ENDS[name].partition("fine.")[0] + "fine."
    assert tokenizer.decode(cut.completion_ids[1]) == ENDS[name]
    assert cut.finished == (False, True)


@pytest.mark.parametrize(
    ("name", "end"), [("gemma", "<end_of_turn>\n<eos>"), ("qwen", "<|im_end|>"), ("llama3", "<|eot_id|>")]
)
def test_a_blank_reply_that_was_cut_has_the_template_s_end(family: Family, name: str, end: str) -> None:
    """There is no token of its own to end with."""
    tokenizer = family(name)
    blank = encoded(replied(Record(PROMPT, (), None, AT), [" "], [False]), tokenizer)
    assert (tokenizer.decode(blank.completion_ids[0]).strip(), blank.finished) == (end, (False,))

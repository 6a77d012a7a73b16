"""What the published layouts make of a dialogue: token for token as apply_chat_template has it."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from alignment.data.records import DataError, Message, Record, Source, assistant, replied
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


DIALOGUE: list[Message] = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello there"},
    {"role": "user", "content": "how are you?"},
    {"role": "assistant", "content": "fine."},
    {"role": "user", "content": "the end"},
    {"role": "assistant", "content": "of the system"},
]
FIRST = {
    "llama2": [" hello there </s>", " fine. </s>", " of the system </s>"],
    "llama3": ["hello there<|eot_id|>", "fine.<|eot_id|>", "of the system<|eot_id|>"],
    "qwen": ["hello there<|im_end|>", "fine.<|im_end|>", "of the system<|im_end|>"],
    "qwen3": ["hello there<|im_end|>", "fine.<|im_end|>", "<think>\n\n</think>\n\nof the system<|im_end|>"],
    "gemma": ["hello there<end_of_turn>\n", "fine.<end_of_turn>\n", "of the system<end_of_turn>\n<eos>"],
    "phi3": ["hello there<|end|>\n", "fine.<|end|>\n", "of the system<|end|>\n<|endoftext|>"],
    "mistral": [" hello there</s>", " fine.</s>", " of the system</s>"],
    "zephyr": ["hello there</s>", "fine.</s>", "of the system</s>"],
}


def learned_runs(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The runs of tokens that carry loss, as text."""
    (ids,), (mask,) = example.completion_ids, example.learned or ()
    borders = np.flatnonzero(np.diff(mask.astype(int))) + 1
    runs = zip(np.split(ids, borders), np.split(mask, borders), strict=True)
    return [tokenizer.decode(run) for run, is_learned in runs if is_learned[0]]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_turn_of_the_assistant_is_learned_and_nothing_else(family: Family, name: str) -> None:
    tokenizer = family(name)
    example = encoded(Record(DIALOGUE[:1], (DIALOGUE[1:],), None, AT), tokenizer)
    whole = tokenizer.apply_chat_template(DIALOGUE, tokenize=False)
    text = tokenizer.decode([*example.prompt_ids, *example.completion_ids[0]])
    assert text.removesuffix("<eos>") == whole.removesuffix("\n" if name in ("qwen", "qwen3", "zephyr") else "")
    assert learned_runs(example, tokenizer) == FIRST[name]
    begins = np.flatnonzero(np.diff(example.learned[0].astype(int)) == 1) + 1
    for turn, begin in zip((2, 4), begins, strict=True):  # behind the tokens that it would be drawn behind
        drawn = encoded(Record(DIALOGUE[: turn + 1], (), None, AT), tokenizer).prompt_ids
        assert example.completion_ids[0][begin - 6 : begin].tolist() == drawn[-6:].tolist()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("separator", ["\n", "\n\n", " => ", "<extra_0>"])
def test_each_step_is_read_once_what_separates_it_from_the_next_has_been(
    family: Family, name: str, separator: str
) -> None:
    """The last at the reply's end, as a reply that is judged as a whole."""
    tokenizer, steps, places, text = deepcopy(family(name)), ["hello there.", "how are 2 + 2?", "fine."], [], ""
    tokenizer.add_tokens(["<extra_0>"], special_tokens=True)  # Qwen's, for this
    for step in steps:
        text += step + separator
        places.append(len(text))
    record = Record(PROMPT, (assistant(separator.join(steps)),), None, AT, labels=(True,) * 3, steps=tuple(places))
    example = encoded(record, tokenizer)
    ids = example.completion_ids[0]
    read = [tokenizer.decode(ids[: end + 1]).lstrip() for end in example.ends]
    wanted = [text[:place].rstrip(" ") for place in places[:2]]  # a space is the next word's in most vocabularies
    assert [so_far[so_far.index("hello") :].rstrip(" ") for so_far in read[:2]] == wanted
    if separator == "<extra_0>":
        assert [ids[end] for end in example.ends[:2]] == [tokenizer.convert_tokens_to_ids(separator)] * 2
    assert example.ends[2] == len(ids) - 1 and example.labels == (True,) * 3


def test_steps_that_are_cut_away_lose_their_labels(family: Family) -> None:
    tokenizer = family("qwen")
    record = Record(PROMPT, (assistant("hello\nhello there"),), None, AT, labels=(True, False), steps=(6, 18))
    whole = encoded(record, tokenizer)
    room = len(whole.prompt_ids) + whole.ends[0] + 1
    counted = Truncation()
    cut = encode(record, tokenizer, Limits(room, len(whole.prompt_ids)), counted)
    assert (cut.ends, cut.labels) == (whole.ends[:1], (True,))
    assert counted == Truncation(completions=1, steps=1)
    with pytest.raises(DataError, match=r"no step of the reply ends within data\.max_length"):
        encode(record, tokenizer, Limits(room - 1, len(whole.prompt_ids)), Truncation())


def test_a_turn_without_weight_is_seen_and_not_learned(family: Family) -> None:
    tokenizer = family("qwen")
    turns = [DIALOGUE[1], DIALOGUE[2], {**DIALOGUE[3], "weight": 0}, *DIALOGUE[4:]]
    example = encoded(Record(DIALOGUE[:1], (turns,), None, AT), tokenizer)
    assert learned_runs(example, tokenizer) == [FIRST["qwen"][0], FIRST["qwen"][2]]


def test_a_template_that_moves_the_system_turn_is_refused_for_many_turns_and_serves_the_last(family: Family) -> None:
    tokenizer, system = family("mistral"), {"role": "system", "content": "be kind"}
    with pytest.raises(DataError, match=r"data\.learn=last learns the last reply alone"):
        encoded(Record([system, *DIALOGUE[:1]], (DIALOGUE[1:4],), None, AT), tokenizer)
    last = encoded(Record([system, *DIALOGUE[:3]], (DIALOGUE[3:4],), None, AT), tokenizer)
    assert tokenizer.decode(last.completion_ids[0]) == " fine.</s>"


def test_a_system_turn_that_only_a_question_without_a_reply_has_is_learned_behind(family: Family) -> None:
    """Mistral 7B v0.3's template writes it into the last turn, if that is a question: a dialogue that goes on has none.
    The question is no part of the reply, and the prompt is the one that replies are drawn behind."""
    tokenizer = family("mistral")
    tokenizer.chat_template = (
        "{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}{{ bos_token }}"
        "{% for message in turns %}{% if message['role'] == 'user' %}{% if loop.last and turns != messages %}"
        "{{ '[INST] ' + messages[0]['content'] + '\n\n' + message['content'] + '[/INST]' }}{% else %}"
        "{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}{% else %}"
        "{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
    )
    asked: list[Message] = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    drawn = encoded(Record(asked, (), None, AT), tokenizer)
    learned = encoded(Record(asked, (assistant("fine."), assistant("no")), None, AT), tokenizer)
    assert tokenizer.decode(drawn.prompt_ids) == "<s>[INST] be kind\n\nhello[/INST]"
    assert learned.prompt_ids.tolist() == drawn.prompt_ids.tolist()
    assert [tokenizer.decode(ids) for ids in learned.completion_ids] == [" fine.</s>", " no</s>"]
    longer = [*asked, {"role": "assistant", "content": "fine."}, *asked[1:]]
    last = encoded(Record(longer, (assistant("no"),), None, AT), tokenizer)
    assert tokenizer.decode(last.prompt_ids) == "<s>[INST] hello[/INST] fine.</s>[INST] be kind\n\nhello[/INST]"
    assert tokenizer.decode(last.completion_ids[0]) == " no</s>"
    cut = encoded(replied(Record(asked, (), None, AT), ["fine."], [False]), tokenizer)
    assert tokenizer.decode(cut.completion_ids[0]) == " fine."
    turns = [{"role": "assistant", "content": "fine."}, *asked[1:], {"role": "assistant", "content": "no"}]
    with pytest.raises(
        DataError, match=r"the first 2 turns otherwise .*; data\.learn=last learns the last reply alone"
    ):
        encoded(Record(asked, (turns,), None, AT), tokenizer)


@pytest.mark.parametrize("name", ["llama3", "phi3", "zephyr"])
def test_a_long_prompt_loses_whole_turns_and_keeps_its_system(family: Family, name: str) -> None:
    tokenizer, system = family(name), {"role": "system", "content": "be kind"}
    asked = [system, *DIALOGUE[:5]]
    sizes = [len(encoded(Record([system, *asked[at:]], (), None, AT), tokenizer).prompt_ids) for at in (1, 3, 5)]
    assert sizes[0] > sizes[1] > sizes[2]
    for limit, start in ((sizes[0], 1), (sizes[0] - 1, 3), (sizes[1], 3), (sizes[1] - 1, 5), (sizes[2], 5)):
        counted = Truncation()
        found = encode(Record(asked, (assistant("fine."),), None, AT), tokenizer, Limits(2000, limit), counted)
        kept = tokenizer.apply_chat_template([system, *asked[start:]], tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(found.prompt_ids) == kept
        assert counted.prompts == (start != 1)


def test_a_question_too_long_itself_loses_its_beginning_behind_the_system_turn(family: Family) -> None:
    tokenizer = family("llama3")
    asked = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello " * 50 + "the end"}]
    whole = encoded(Record(asked, (), None, AT), tokenizer).prompt_ids.tolist()
    cut = encode(
        Record(asked, (), None, AT), tokenizer, Limits(2000, len(whole) - 20), Truncation()
    ).prompt_ids.tolist()
    assert len(cut) == len(whole) - 20
    text = tokenizer.decode(cut)
    head = tokenizer.apply_chat_template(asked, tokenize=False).partition("hello")[0]
    assert text.startswith(head) and "the end<|eot_id|>" in text
    assert cut[-20:] == whole[-20:]


GENERATION = (  # as trainers write it that take the mask from the template
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_the_mask_that_a_template_marks_itself_is_the_one_that_is_found_without_it(family: Family) -> None:
    tokenizer = family("qwen")
    tokenizer.chat_template = GENERATION
    example = encoded(Record(DIALOGUE[:1], (DIALOGUE[1:],), None, AT), tokenizer)
    marked = tokenizer.apply_chat_template(DIALOGUE, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = [*example.prompt_ids, *example.completion_ids[0]], [False] * len(example.prompt_ids)
    mask += example.learned[0].tolist()
    assert ids == marked["input_ids"][: len(ids)] and tokenizer.decode(marked["input_ids"][len(ids) :]) == "\n"
    assert mask == [bool(each) for each in marked["assistant_masks"][: len(ids)]]
    assert 5 < sum(mask) < len(mask) - 5

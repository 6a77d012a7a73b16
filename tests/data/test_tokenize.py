from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from alignment.config.data import ExampleKind, Format, Template
from alignment.data.chat import render
from alignment.data.formats import parse
from alignment.data.read import read_rows
from alignment.data.records import Message, Record, Source, assistant
from alignment.data.tokenize import Example, Limits, Truncation, encode

AT = Source("rows.jsonl", 4)
WIDE = Limits(max_length=100_000, max_prompt_length=50_000)
DIALOGUE = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello there"},
    {"role": "user", "content": "how are you?"},
]


def replies(*texts: str) -> tuple[list[Message], ...]:
    return tuple(assistant(text) for text in texts)


def encoded(texts: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, limits: Limits = WIDE) -> Example:
    return encode(Record(DIALOGUE, replies(*texts), None, AT), tokenizer, limits, Truncation())


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def no_margin(row: object, source: object) -> None:
    return None


REAL = [
    ("hh_harmless.test.jsonl.gz", Format.hh, ExampleKind.pairs),
    ("alpaca_en_demo.json.gz", Format.alpaca, ExampleKind.demonstrations),
    ("dpo_zh_demo.json.gz", Format.sharegpt, ExampleKind.pairs),
    ("kto_en_demo.json.gz", Format.messages, ExampleKind.prompts),
]


@pytest.mark.parametrize(("name", "format", "need"), REAL)
@pytest.mark.parametrize("which", ["llama2", "chatml"])
def test_real_rows_are_tokenized_as_one_text(
    shared: Path, name: str, format: Format, need: ExampleKind, which: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(which)
    for source, row in islice(read_rows(shared / "data" / name), 40):
        record = parse(row, source, format, need, no_margin)
        example = encode(record, tokenizer, WIDE, Truncation())
        rendered = render(record, tokenizer)
        prompt, texts = rendered.prompt, rendered.texts()
        assert example.prompt_ids.tolist() == ids_of(tokenizer, prompt)
        assert len(example.completion_ids) == len(texts) == len(record.completions)
        for ids, reply in zip(example.completion_ids, texts, strict=True):
            whole = [*example.prompt_ids, *ids]
            text = prompt + reply.removesuffix("\n" if which == "chatml" else "")
            assert whole == ids_of(tokenizer, text)
            assert tokenizer.decode(whole) == text
            assert ids.tolist().count(tokenizer.eos_token_id) == 1
            assert ids[-1] == tokenizer.eos_token_id


def test_llama_2_token_by_token(llama2: PreTrainedTokenizerBase) -> None:
    example = encode(Record(DIALOGUE[:1], replies("hi there", "hello"), 2 / 3, AT), llama2, WIDE, Truncation())
    assert llama2.convert_ids_to_tokens(example.prompt_ids.tolist()) == [
        *("<s>", "<0x0A>", "<0x0A>", "H", "uman", ":", "▁hello", "<0x0A>", "<0x0A>", "Ass", "istant", ":"),
    ]
    chosen, rejected = (llama2.convert_ids_to_tokens(ids.tolist()) for ids in example.completion_ids)
    assert (chosen, rejected) == (["▁hi", "▁there", "</s>"], ["▁hello", "</s>"])
    assert (example.margin, example.source, example.finished) == (2 / 3, AT, (True, True))
    assert {ids.dtype for ids in (example.prompt_ids, *example.completion_ids)} == {np.dtype(np.int32)}


def test_the_prompt_is_the_same_with_and_without_replies(llama2: PreTrainedTokenizerBase) -> None:
    prompts = [encoded(texts, llama2).prompt_ids.tolist() for texts in ((), ("fine",), ("fine", "no"))]
    assert prompts[0] == prompts[1] == prompts[2]


def test_a_token_across_the_border_leaves_the_prompt_whole(chatml: PreTrainedTokenizerBase) -> None:
    example = encoded(("\n\nhello",), chatml)
    rendered = render(Record(DIALOGUE, replies("\n\nhello"), None, AT), chatml)
    prompt, (reply,) = rendered.prompt, rendered.texts()
    joint = ids_of(chatml, prompt + reply)
    assert joint[: len(example.prompt_ids)] != example.prompt_ids.tolist()  # "\n\n" is one token
    assert example.prompt_ids.tolist() == ids_of(chatml, prompt)
    assert chatml.decode([*example.prompt_ids, *example.completion_ids[0]]) == prompt + reply.removesuffix("\n")


@pytest.mark.parametrize("limits", [WIDE, Limits(max_length=20, max_prompt_length=3)], ids=["whole", "cut prompt"])
def test_no_space_is_invented_where_a_reply_begins(llama2: PreTrainedTokenizerBase, limits: Limits) -> None:
    llama2.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    llama2.chat_template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    ids = encoded(("there",), llama2, limits).completion_ids[0]
    assert llama2.convert_ids_to_tokens(ids.tolist()) == ["there", "</s>"]  # "▁there" on its own


def test_what_the_template_writes_after_the_eos_is_left_out(chatml: PreTrainedTokenizerBase) -> None:
    ids = encoded(("fine.",), chatml).completion_ids[0]
    assert chatml.decode(ids) == "fine.<|im_end|>"


def test_an_eos_is_appended_where_the_template_has_none(chatml: PreTrainedTokenizerBase) -> None:
    chatml.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    chatml.chat_template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    example = encoded(("fine.", "no"), chatml)
    assert [chatml.decode(ids) for ids in example.completion_ids] == ["fine.<|im_end|>", "no<|im_end|>"]
    assert example.finished == (True, True)


@pytest.mark.parametrize("pad", ["<|im_end|>", "<pad>", None])
def test_the_pad_token_changes_nothing(chatml: PreTrainedTokenizerBase, pad: str | None) -> None:
    before = encoded(("fine.", "no"), chatml)
    chatml.pad_token = pad
    after = encoded(("fine.", "no"), chatml)
    assert after.prompt_ids.tolist() == before.prompt_ids.tolist()
    assert [ids.tolist() for ids in after.completion_ids] == [ids.tolist() for ids in before.completion_ids]
    assert after.finished == before.finished == (True, True)


def test_prompts_lose_their_beginning_and_completions_their_end(chatml: PreTrainedTokenizerBase) -> None:
    whole = encoded(("hello there, how are you?", "hello"), chatml)
    prompt, (chosen, rejected) = whole.prompt_ids.tolist(), [ids.tolist() for ids in whole.completion_ids]
    room = len(rejected)
    assert len(chosen) > room
    head = len(ids_of(chatml, "<|im_start|>user\n"))
    size = head + 10
    limits = Limits(max_length=size + room, max_prompt_length=size)
    truncation = Truncation(prompts=5, completions=7)
    record = Record(DIALOGUE, replies("hello there, how are you?", "hello"), None, AT)
    cut = encode(record, chatml, limits, truncation)
    assert cut.prompt_ids.tolist() == [*prompt[:head], *prompt[-10:]]
    assert [ids.tolist() for ids in cut.completion_ids] == [chosen[:room], rejected]
    assert chatml.eos_token_id not in cut.completion_ids[0]
    assert cut.finished == (False, True)
    assert truncation == Truncation(prompts=6, completions=8)


@pytest.mark.parametrize("spare", [0, -1])
def test_only_the_eos_is_lost_where_one_token_is_too_many(chatml: PreTrainedTokenizerBase, spare: int) -> None:
    whole = encoded(("hello",), chatml)
    size, completion = len(whole.prompt_ids), whole.completion_ids[0].tolist()
    truncation = Truncation()
    limits = Limits(max_length=size + len(completion) + spare, max_prompt_length=size)
    cut = encode(Record(DIALOGUE, replies("hello"), None, AT), chatml, limits, truncation)
    assert cut.prompt_ids.tolist() == whole.prompt_ids.tolist()
    assert cut.completion_ids[0].tolist() == completion[: len(completion) + spare]
    assert (cut.finished, truncation) == ((spare == 0,), Truncation(0, -spare))


def test_a_short_prompt_leaves_its_room_to_the_completion(chatml: PreTrainedTokenizerBase) -> None:
    size = len(encoded((), chatml).prompt_ids)
    long = encoded(("hello there " * 50,), chatml, Limits(max_length=size + 60, max_prompt_length=size + 40))
    assert len(long.completion_ids[0]) == 60


@pytest.mark.parametrize(("longest", "prompt"), [(8, 8), (8, 0), (8, 9)])
def test_limits_leave_room_for_a_token_of_each(longest: int, prompt: int) -> None:
    rule = rf"^max_prompt_length must be in \[1, max_length = {longest}\), got {prompt}$"
    with pytest.raises(ValueError, match=rule):
        Limits(max_length=longest, max_prompt_length=prompt)


def test_a_tokenizer_without_an_eos_is_refused(chatml: PreTrainedTokenizerBase) -> None:
    chatml.eos_token = None
    with pytest.raises(ValueError, match=r"^the tokenizer must have an eos_token"):
        encoded(("fine",), chatml)


def test_a_shortened_prompt_keeps_the_bos_it_began_with(llama2: PreTrainedTokenizerBase) -> None:
    """And where its turn begins, if there is room for more than that."""
    whole = encoded((), llama2).prompt_ids.tolist()
    assert whole[0] == llama2.bos_token_id
    head = llama2.convert_ids_to_tokens(whole).index(":") + 1
    for limit, kept in ((head, 1), (head + 4, head)):
        cut = encoded((), llama2, Limits(max_length=20, max_prompt_length=limit)).prompt_ids.tolist()
        assert cut == [*whole[:kept], *whole[kept - limit :]]


@pytest.mark.parametrize("own", [False, True])
def test_a_system_turn_of_the_template_s_own_is_kept_as_one_of_the_row_s(
    chatml: PreTrainedTokenizerBase, own: bool
) -> None:
    """Qwen 2.5 writes one where the row has none."""
    system = {"role": "system", "content": "the user is the system"}
    prompt = [*([] if own else [system]), {"role": "user", "content": "hello there " * 20}]
    if own:
        chatml.chat_template = "<|im_start|>system\n" + system["content"] + "<|im_end|>\n" + chatml.chat_template
    whole = chatml.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    head = whole.partition("hello")[0]
    limit = len(ids_of(chatml, head)) + 12
    cut = encode(Record(prompt, (), None, AT), chatml, Limits(100, limit), Truncation()).prompt_ids.tolist()
    assert cut == [*ids_of(chatml, head), *ids_of(chatml, whole)[-12:]]


def test_a_developer_s_turn_is_kept_as_a_system_s(chatml: PreTrainedTokenizerBase) -> None:
    kept = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": "fine"}]
    prompt = [kept[0], *DIALOGUE[:2], kept[1]]
    size = len(ids_of(chatml, chatml.apply_chat_template(kept, tokenize=False, add_generation_prompt=True)))
    cut = encode(Record(prompt, (), None, AT), chatml, Limits(100, size), Truncation())
    assert chatml.decode(cut.prompt_ids).startswith("<|im_start|>developer\nbe kind<|im_end|>\n<|im_start|>user\nfine")


def test_tags_stay_with_the_tokens(chatml: PreTrainedTokenizerBase) -> None:
    record = Record(DIALOGUE, (), None, AT, ("safety",))
    assert encode(record, chatml, WIDE, Truncation()).tags == ("safety",)


@pytest.mark.parametrize("which", ["tokenizer", "chatml"])
def test_a_plain_text_is_predicted_whole(which: str, request: pytest.FixtureRequest) -> None:
    """From the token that begins a document: the BOS; a tokenizer without one has its EOS between documents."""
    tokenizer = request.getfixturevalue(which)
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    text, truncation = (
        Record([], replies(" hello there,\nhow are you? "), None, AT, template=Template.none),
        Truncation(),
    )
    example = encode(text, tokenizer, WIDE, truncation)
    assert example.prompt_ids.tolist() == [begin]
    ids = [*ids_of(tokenizer, " hello there,\nhow are you? "), tokenizer.eos_token_id]
    assert [piece.tolist() for piece in example.completion_ids] == [ids] and example.finished == (True,)
    cut = encode(text, tokenizer, Limits(4, 2), truncation)
    assert cut.completion_ids[0].tolist() == ids[:3] and cut.finished == (False,)
    assert (truncation.prompts, truncation.completions) == (0, 1)


def test_a_text_that_is_laid_out_already_begins_and_ends_once(llama2: PreTrainedTokenizerBase) -> None:
    texts = ("<s>[INST] hello [/INST] fine</s>", "[INST] hello [/INST] fine")
    records = [Record([], replies(text), None, AT, template=Template.none) for text in texts]
    examples = [encode(record, llama2, WIDE, Truncation()) for record in records]
    first, second = ([*each.prompt_ids.tolist(), *each.completion_ids[0].tolist()] for each in examples)
    assert first == second
    assert [first.count(token) for token in (llama2.bos_token_id, llama2.eos_token_id)] == [1, 1]

"""Rows that only a tokenizer can refuse."""

import re

import pytest
from transformers import PreTrainedTokenizerBase

from alignment.data.checks import require_difference, require_plain_texts
from alignment.data.records import DataError, Message, Record, Source, assistant
from alignment.data.tokenize import Limits, Truncation, encode

AT = Source("rows.jsonl", 4)
PROMPT: list[Message] = [{"role": "user", "content": "hello"}]


def record(*texts: str) -> Record:
    return Record(PROMPT, tuple(assistant(text) for text in texts), None, AT)


def test_a_reply_that_holds_an_eos_is_a_bad_row(chatml: PreTrainedTokenizerBase) -> None:
    what = "rows.jsonl:4: a reply holds the end-of-text token '<|im_end|>'"
    with pytest.raises(DataError, match=f"^{re.escape(what)}$"):
        require_plain_texts(record("fine", "stop <|im_end|> go"), chatml)


def test_replies_that_differ_only_beyond_the_limit_are_twins(chatml: PreTrainedTokenizerBase) -> None:
    pair = record("hello there", "hello there fine")
    size = len(encode(record(), chatml, Limits(1000, 500), Truncation()).prompt_ids)
    same = len(chatml("hello there", add_special_tokens=False)["input_ids"])
    short, longer = (Limits(max_length=size + room, max_prompt_length=size) for room in (same, same + 1))
    with pytest.raises(DataError, match=r"^rows.jsonl:4: chosen and rejected are the same within data.max_length = "):
        require_difference(encode(pair, chatml, short, Truncation()), short)
    require_difference(encode(pair, chatml, longer, Truncation()), longer)

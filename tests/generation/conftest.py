"""Prompts with replies of different lengths, made by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from alignment.data.records import Record, Source
from alignment.data.tokenize import Example
from alignment.generation.generate import Reply
from alignment.generation.samples import Samples


@pytest.fixture(scope="session")
def samples_of() -> Callable[[list[list[str]]], Samples]:
    """[G][n] texts to Samples: a text's tokens are its letters' codes and an EOS (2); one in capitals lacks it."""

    def build(texts: list[list[str]]) -> Samples:
        records = [
            Record([{"role": "user", "content": f"prompt {row}"}], (), None, Source("rows.jsonl", row + 1))
            for row in range(len(texts))
        ]
        replies = [[reply(text) for text in row] for row in texts]
        examples = [
            Example(
                prompt_ids=np.arange(10, 14 + row, dtype=np.int32),
                completion_ids=tuple(reply.ids for reply in row_replies),
                margin=None,
                source=Source("rows.jsonl", row + 1),
                finished=tuple(reply.finished for reply in row_replies),
            )
            for row, row_replies in enumerate(replies)
        ]
        return Samples(records, examples, replies)

    return build


def reply(text: str) -> Reply:
    finished = not text.isupper()
    return Reply(np.array([ord(letter) for letter in text] + [2] * finished, dtype=np.int32), finished, text)

"""Why a model that need not reply yet passes: the verdict says what it is held to."""

from types import SimpleNamespace
from typing import Any

import pytest

from alignment.check import replies
from alignment.check.verdict import Grade


@pytest.mark.parametrize(
    ("ended", "known", "is_taught", "grade", "end"),
    [
        (0, 0.079, False, Grade.ok, "a probability of 7.9% (median), above 5%: it knows the end"),
        (2, 0.001, False, Grade.ok, "a probability of 0.1% (median); half of them end"),
        (1, 0.001, False, Grade.warn, "SFT comes before this"),
        (0, 0.001, True, Grade.ok, "below 5%, so that it does not know it; this run is to teach it"),
        (0, 0.001, False, Grade.warn, "SFT comes before this"),
    ],
)
def test_a_verdict_on_ends_says_why(
    monkeypatch: pytest.MonkeyPatch, ended: int, known: float, is_taught: bool, grade: Grade, end: str
) -> None:
    monkeypatch.setattr(replies, "show", lambda *_: None)
    drawn = [[SimpleNamespace(finished=index < ended, ids=[1, 2, 3])] for index in range(4)]
    samples: Any = SimpleNamespace(replies=drawn, examples=[])
    tokenizer: Any = None
    verdict = replies.begins_to_stop(samples, tokenizer, known, is_taught=is_taught)
    assert verdict.grade is grade and verdict.figure.endswith(end), verdict.figure
    assert verdict.figure.startswith(f"{ended} of 4 drawn replies ended within 3 tokens")

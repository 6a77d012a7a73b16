"""Rejection sampling and best-of-n by hand. Replies in capitals were cut before their end."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from alignment.config.data import Template
from alignment.config.tasks import Selection
from alignment.data.checks import NOTHING, Signs, signs_of
from alignment.generation.samples import Samples
from alignment.generation.select import best_of, select

ANYTHING = Signs(NOTHING, NOTHING, NOTHING, "")  # a reply may hold
SamplesOf = Callable[[list[list[str]]], Samples]


def prompt(row: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"prompt {row}"}]


def test_best_by_hand(samples_of: SamplesOf) -> None:
    samples = samples_of([["a", "b", "c"], ["d", "e", "f"]])
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.5, -1.0, 0.25]])
    assert select(samples, scores, Selection.best, ANYTHING) == [
        {"prompt": prompt(0), "completion": "b", "score": 3.0},
        {"prompt": prompt(1), "completion": "d", "score": 0.5},
    ]


def test_best_and_worst_by_hand(samples_of: SamplesOf) -> None:
    samples = samples_of([["a", "b", "c"], ["d", "e", "f"]])
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.5, -1.0, 0.25]])
    assert select(samples, scores, Selection.best_and_worst, ANYTHING) == [
        {"prompt": prompt(0), "chosen": "b", "rejected": "a", "chosen_score": 3.0, "rejected_score": 1.0},
        {"prompt": prompt(1), "chosen": "d", "rejected": "e", "chosen_score": 0.5, "rejected_score": -1.0},
    ]


def test_what_a_row_gives_its_template_goes_with_it(samples_of: SamplesOf) -> None:
    """The reply was drawn behind a prompt that was written so."""
    samples = samples_of([["a", "b"]])
    tools, kwargs = ({"name": "f"},), {"enable_thinking": False}
    samples.records = [replace(samples.records[0], tools=tools, tags=("safety",), template_kwargs=kwargs)]
    (row,) = select(samples, torch.tensor([[1.0, 0.0]]), Selection.best, ANYTHING)
    assert (row["tools"], row["tags"]) == ([{"name": "f"}], ["safety"])
    assert row["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("selection", list(Selection))
def test_cut_and_empty_replies_are_no_candidates(samples_of: SamplesOf, selection: Selection) -> None:
    samples = samples_of([["CUT", "b", ""], ["A", "B", "C"], ["g", "h", "I"]])
    rows = select(samples, torch.tensor([[9.0, 1.0, -9.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), selection, ANYTHING)
    if selection is Selection.best:
        assert [row["completion"] for row in rows] == ["b", "h"]
    else:  # the first prompt has one candidate, the second none
        assert [(row["chosen"], row["rejected"]) for row in rows] == [("h", "g")]


def test_no_pair_without_a_preference(samples_of: SamplesOf) -> None:
    samples = samples_of([["a", "a"], ["b", "c"]])
    assert select(samples, torch.tensor([[1.0, 0.5], [2.0, 2.0]]), Selection.best_and_worst, ANYTHING) == []
    assert len(select(samples, torch.tensor([[1.0, 0.5], [2.0, 2.0]]), Selection.best, ANYTHING)) == 2


def test_best_of_by_hand(samples_of: SamplesOf) -> None:
    samples = samples_of([["a", "bb", "CCC"], ["d", "e", "f"]])
    picked = best_of(samples, torch.tensor([[1.0, 2.0, 3.0], [5.0, 4.0, 3.0]]))
    assert picked.texts() == ["CCC", "d"]
    assert picked.prompts == samples.prompts
    assert [[len(ids) for ids in example.completion_ids] for example in picked.examples] == [[3], [2]]
    assert [example.finished for example in picked.examples] == [(False,), (True,)]
    assert [example.prompt_ids.tolist() for example in picked.examples] == [
        example.prompt_ids.tolist() for example in samples.examples
    ]
    assert samples.texts() == ["a", "bb", "CCC", "d", "e", "f"]


def test_a_reply_that_no_row_may_hold_is_no_candidate(samples_of: SamplesOf, family: Callable[[str], Any]) -> None:
    """Written, it would be refused as it is read: for good, since the same replies are drawn again."""
    signs = signs_of(family("qwen"), Template.chat)
    samples = samples_of([["a\0", "b", "c<|im_end|>d", "e"]])
    scores = torch.tensor([[4.0, 3.0, 0.0, 1.0]])
    (row,) = select(samples, scores, Selection.best_and_worst, signs)
    assert (row["chosen"], row["rejected"]) == ("b", "e")
    (row,) = select(samples, scores, Selection.best_and_worst, ANYTHING)
    assert (row["chosen"], row["rejected"]) == ("b", "c<|im_end|>d")

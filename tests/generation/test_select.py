"""Rejection sampling, pairs to learn from and best-of-n by hand. Replies in capitals were cut before their end."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from alignment.config.data import Template
from alignment.config.online import PairSelection
from alignment.config.tasks import Selection
from alignment.data.checks import NOTHING, Signs, signs_of
from alignment.data.tokenize import Example
from alignment.generation.samples import Samples
from alignment.generation.select import best_of, preferences, select

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


def letters(pairs: list[Example]) -> list[tuple[str, ...]]:
    """Chosen and rejected of each pair, as text."""
    return [tuple("".join(map(chr, ids)).removesuffix("\2") for ids in pair.completion_ids) for pair in pairs]


def test_the_best_reply_is_chosen_and_the_worst_rejected(samples_of: SamplesOf) -> None:
    """Also one that was cut: it is what the policy says."""
    samples = samples_of([["a", "b", "CC"], ["d", "e", "f"]])
    scores = torch.tensor([[1.0, 3.0, -2.0], [0.5, -1.0, 0.75]])
    pairs = preferences(samples, scores, PairSelection.best_and_worst, 1)
    assert letters(pairs) == [("b", "CC"), ("f", "e")]
    assert [pair.finished for pair in pairs] == [(True, False), (True, True)]
    assert [pair.weight for pair in pairs] == [1.0, 1.0]
    assert [pair.prompt_ids.tolist() for pair in pairs] == [each.prompt_ids.tolist() for each in samples.examples]


def test_each_reply_is_chosen_over_all_that_score_less(samples_of: SamplesOf) -> None:
    """Not over one that scores the same, nor over itself."""
    samples = samples_of([["a", "b", "CC"], ["d", "e", "f"], ["g", "h", "g"]])
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.0, 4.0, 0.0], [2.0, 1.0, 0.0]])
    pairs = preferences(samples, scores, PairSelection.all, 1)
    first, second, third = [("b", "CC"), ("b", "a"), ("CC", "a")], [("e", "d"), ("e", "f")], [("g", "h"), ("h", "g")]
    assert letters(pairs) == first + second + third
    assert [pair.finished for pair in pairs[:3]] == [(True, False), (True, True), (False, True)]
    assert {pair.weight for pair in pairs} == {1.0}


@pytest.mark.parametrize("selection", list(PairSelection))
def test_ties_fill_up_what_is_dealt_out_and_count_nothing(samples_of: SamplesOf, selection: PairSelection) -> None:
    """Of four prompts one has a pair; one has the same reply twice, two have replies that score alike."""
    samples = samples_of([["a", "a"], ["b", "c"], ["d", "e"], ["f", "g"]])
    scores = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 1.0], [3.0, 3.0]])
    for multiple, filled in ((1, []), (2, [("a", "a")]), (3, [("a", "a"), ("b", "c")])):
        pairs = preferences(samples, scores, selection, multiple)
        assert letters(pairs) == [("e", "d"), *filled]
        assert [pair.weight for pair in pairs] == [1.0] + [0.0] * len(filled)
    even = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
    assert letters(preferences(samples, even, selection, 2)) == [("e", "d"), ("f", "g")]
    assert preferences(samples, torch.zeros(4, 2), selection, 2) == []


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

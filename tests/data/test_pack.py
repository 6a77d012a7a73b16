"""Rows by hand. Prompt 10 11 12, completions 20 21 and 30; prompt 40 41, completions 50 and 60 61 (C = 4)."""

import dataclasses

import numpy as np
import pytest
import torch

from alignment.config.batch import Layout
from alignment.data.pack import PADDING, Batch, pack, packed_length
from alignment.data.records import Source
from alignment.data.tokenize import Example


def example(prompt: list[int], *completions: list[int], margin: float | None = None) -> Example:
    return Example(
        prompt_ids=np.array(prompt, dtype=np.int32),
        completion_ids=tuple(np.array(ids, dtype=np.int32) for ids in completions),
        margin=margin,
        source=Source("rows.jsonl", 1),
        finished=(True,) * len(completions),
    )


FIRST = example([10, 11, 12], [20, 21], [30], margin=3.0)
SECOND = example([40, 41], [50], [60, 61], margin=0.0)


def packed(*examples: Example, layout: Layout = Layout.shared, pad_id: int = 9) -> Batch:
    return pack(examples, range(len(examples)), layout=layout, pad_id=pad_id)


def test_shared_layout_by_hand() -> None:
    batch = packed(FIRST, SECOND)
    assert batch.input_ids.tolist() == [[10, 11, 12, 20, 21, 30, 40, 41, 50, 60, 61]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2, 2, 3]]
    assert batch.groups.tolist() == [[0] * 6 + [1] * 5]
    assert (batch.group_lengths, batch.plain_lengths) == ((6, 5), (5, 3))
    assert batch.branches.tolist() == [[0, 0, 0, 1, 1, 2, 0, 0, 1, 2, 2]]
    assert batch.positions.tolist() == [2, 3, 2, 7, 7, 9]
    assert batch.targets.tolist() == [20, 21, 30, 50, 60, 61]
    assert batch.lengths.tolist() == [2, 1, 1, 2]
    assert batch.ends.tolist() == [4, 5, 8, 10]
    assert batch.prompt_positions.tolist() == [0, 1, 6]
    assert batch.prompt_targets.tolist() == [11, 12, 41]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.shared


def test_separate_layout_by_hand() -> None:
    batch = packed(FIRST, SECOND, layout=Layout.separate)
    assert batch.input_ids.tolist() == [
        [10, 11, 12, 20, 21],
        [10, 11, 12, 30, 9],
        [40, 41, 50, 9, 9],
        [40, 41, 60, 61, 9],
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 4
    assert (batch.groups != PADDING).sum(1).tolist() == [5, 4, 3, 4]
    assert batch.positions.tolist() == [2, 3, 7, 11, 16, 17]
    assert batch.targets.tolist() == [20, 21, 30, 50, 60, 61]
    assert batch.ends.tolist() == [4, 8, 12, 18]
    assert batch.prompt_positions.tolist() == [0, 1, 10]
    assert batch.prompt_targets.tolist() == [11, 12, 41]
    assert (batch.group_lengths, batch.plain_lengths) == ((), ())
    assert not batch.shared


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_what_is_not_learned_is_seen_and_not_read(layout: Layout) -> None:
    masks = (np.array([True, False, False, True]), np.array([True]))
    some = dataclasses.replace(example([10, 11], [20, 21, 22, 23], [30]), learned=masks)
    batch, whole = packed(some, layout=layout), packed(dataclasses.replace(some, learned=None), layout=layout)
    ids = batch.input_ids.flatten()
    assert batch.targets.tolist() == [20, 23, 30] and ids[batch.positions].tolist() == [11, 22, 11]
    assert (batch.lengths.tolist(), batch.num_tokens) == ([2, 1], 3)
    assert ids[batch.ends].tolist() == [23, 30]
    assert batch.sum_by_completion(torch.tensor([1.0, 2.0, 4.0])).tolist() == [3.0, 4.0]
    for name in (
        "input_ids",
        "position_ids",
        "groups",
        "branches",
        "ends",
        "num_ends",
        "branch_lengths",
    ):
        left, right = getattr(batch, name), getattr(whole, name)
        assert left == right if isinstance(left, tuple) else torch.equal(left, right)


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_examples_rows_and_margins(layout: Layout) -> None:
    batch = pack([SECOND, FIRST], [7, 3], layout=layout, pad_id=0)
    assert batch.rows.tolist() == [7, 3]
    assert batch.margins is not None and batch.margins.tolist() == [0.0, 3.0]
    assert batch.margins.dtype == torch.float32
    assert (batch.replies, batch.num_tokens) == (2, 6)
    for name in (
        "input_ids",
        "position_ids",
        "positions",
        "targets",
        "ends",
        "num_ends",
        "lengths",
        "prompt_positions",
        "rows",
    ):
        assert getattr(batch, name).dtype == torch.long


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_weights_are_one_where_the_data_say_nothing(layout: Layout) -> None:
    batch = packed(FIRST, dataclasses.replace(SECOND, weight=2.5), FIRST, layout=layout)
    assert (batch.weights.tolist(), batch.weights.dtype) == ([1.0, 2.5, 1.0], torch.float32)
    assert batch.total_weight == 4.5
    assert batch.token_weights.tolist() == [1.0] * 3 + [2.5] * 3 + [1.0] * 3


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_a_completion_of_steps_is_scored_at_the_end_of_each(layout: Layout) -> None:
    """Beside one that is judged as a whole."""
    steps = dataclasses.replace(example([10, 11], [20, 21, 22, 23]), labels=(True, False), ends=(1, 3))
    whole = dataclasses.replace(example([40], [50, 51]), labels=(True,))
    batch = packed(steps, whole, layout=layout)
    assert batch.input_ids.flatten()[batch.ends].tolist() == [21, 23, 51]
    assert batch.num_ends.tolist() == [2, 1]
    assert batch.labels is not None and batch.labels.tolist() == [True, False, True]
    assert batch.labels.dtype == torch.bool


def test_a_score_is_a_label_too() -> None:
    rows = (dataclasses.replace(example([1, 2], [3]), labels=(score,)) for score in (0.5, 3))
    batch = packed(*rows)
    assert batch.labels is not None and (batch.labels.tolist(), batch.labels.dtype) == ([0.5, 3.0], torch.float32)


def test_no_margins_where_the_data_carry_none() -> None:
    assert packed(example([1, 2], [3])).margins is None


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
@pytest.mark.parametrize("pad_id", [0, 21, 61])
def test_each_position_is_the_token_before_its_target(layout: Layout, pad_id: int) -> None:
    """The token that predicts is the branch's previous one, or the prompt's last; whatever the pad's id."""
    batch = packed(FIRST, SECOND, example([70], [71, 72], [73], margin=1.0), layout=layout, pad_id=pad_id)
    ids = batch.input_ids.flatten()
    assert ids[batch.positions].tolist() == [12, 20, 12, 41, 41, 60, 70, 71, 70]
    assert ids[batch.ends].tolist() == [21, 30, 50, 61, 72, 73]
    assert ids[batch.prompt_positions].tolist() == [10, 11, 40]
    assert batch.prompt_lengths.tolist() == [2, 1, 0]


def test_nothing_is_padding_in_the_shared_layout() -> None:
    batch = packed(*(example([i * 10], list(range(i * 10 + 1, i * 10 + n))) for i, n in enumerate([6, 2, 4, 3, 5], 1)))
    assert batch.input_ids.shape == (1, 20)
    assert batch.group_lengths == (6, 2, 4, 3, 5)
    assert (batch.groups != PADDING).all()


def test_sums_and_tables_of_completions() -> None:
    batch = packed(FIRST, SECOND)
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert batch.sum_by_completion(values).tolist() == [3.0, 4.0, 8.0, 48.0]
    assert batch.completion_mask().tolist() == [[True, True], [True, False], [True, False], [True, True]]
    assert batch.by_completion(values).tolist() == [[1.0, 2.0], [4.0, 0.0], [8.0, 0.0], [16.0, 32.0]]
    assert batch.sum_by_prompt(torch.tensor([1.0, 2.0, 4.0])).tolist() == [3.0, 4.0]


def test_a_prompt_of_one_token_predicts_none_of_its_own() -> None:
    batch = packed(example([1], [2, 3]), example([4, 5], [6]))
    assert batch.sum_by_prompt(torch.tensor([7.0])).tolist() == [0.0, 7.0]


def test_laid_out_length() -> None:
    assert packed_length(FIRST, Layout.shared) == 6
    longest = max(len(ids) for ids in FIRST.completion_ids)
    rows = len(FIRST.completion_ids)
    assert packed_length(FIRST, Layout.separate) == rows * (len(FIRST.prompt_ids) + longest)


def test_one_batch_has_one_number_of_completions() -> None:
    with pytest.raises(ValueError, match="same number of completions"):
        packed(FIRST, example([1], [2]))


def test_to_moves_and_keeps_everything() -> None:
    batch = packed(FIRST, SECOND)
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids.device.type == moved.prompt_targets.device.type == "meta"
    assert moved.margins is not None and moved.margins.device.type == "meta"
    assert moved.shared

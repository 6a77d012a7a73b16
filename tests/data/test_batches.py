from typing import Any

import numpy as np
import pytest

from alignment.config.batch import BatchConfig, Layout
from alignment.config.train import TrainConfig
from alignment.data.batches import Batches, Packer, cut, deal
from alignment.data.mixture import shuffled
from alignment.data.pack import packed_length
from alignment.data.records import Source
from alignment.data.tokenize import Example

LENGTHS = [9, 3, 7, 4, 12, 5, 3, 8, 6, 10, 4]  # of prompt and completion together


def examples(lengths: list[int]) -> list[Example]:
    completion = np.array([1, 2], dtype=np.int32)
    return [
        Example(np.arange(n - 2, dtype=np.int32), (completion,), None, Source("rows.jsonl", i), (True,))
        for i, n in enumerate(lengths, start=1)
    ]


def batches(size: int = 4, seed: int = 0, max_tokens: int = 24, layout: Layout = Layout.shared) -> Batches:
    config = BatchConfig(size=size, max_tokens=max_tokens, layout=layout)
    return Batches(examples(LENGTHS), Packer(config, 0), seed)


def test_cut_by_hand() -> None:
    # Padded, longest first: 9 + 7 (18), 5 + 4 + 3 (15), 3 would make 20 of 19.
    assert cut([3, 9, 4, 7, 5, 3], 19, Layout.separate) == [[1, 3], [4, 2, 0], [5]]
    # End to end, each where there is room for it: 9 + 7 + 3 (19), 5 + 4 + 3 (12).
    assert cut([3, 9, 4, 7, 5, 3], 19, Layout.shared) == [[1, 3, 0], [4, 2, 5]]


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
@pytest.mark.parametrize("max_tokens", [1, 12, 24, 31, 1000])
def test_cut_keeps_the_budget_and_every_index_once(max_tokens: int, layout: Layout) -> None:
    pieces = cut(LENGTHS, max_tokens, layout)
    assert sorted(index for piece in pieces for index in piece) == list(range(len(LENGTHS)))
    for piece in pieces:
        lengths = [LENGTHS[index] for index in piece]
        tokens = sum(lengths) if layout is Layout.shared else max(lengths) * len(piece)
        assert tokens <= max_tokens or len(piece) == 1


def first_fit(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Every piece is asked for room, one after the other, by each item, the longest first."""
    pieces: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        held = (sum(lengths[i] for i in piece) for piece in pieces)
        place = next((p for p, tokens in enumerate(held) if tokens + lengths[index] <= max_tokens), len(pieces))
        pieces[place:] = [[*pieces[place], index], *pieces[place + 1 :]] if place < len(pieces) else [[index]]
    return pieces


@pytest.mark.parametrize("max_tokens", [1, 7, 40, 64, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 50, 300])
@pytest.mark.parametrize("longest", [1, 12, 70])
def test_a_shared_cut_is_first_fit_of_the_longest_first(max_tokens: int, count: int, longest: int) -> None:
    lengths = np.random.default_rng(count).integers(1, longest, count, endpoint=True).tolist()
    assert cut(lengths, max_tokens, Layout.shared) == first_fit(lengths, max_tokens)


class Compared(int):
    """A length that counts how often it is compared with what room there is."""

    looks = 0

    def __le__(self, other: int) -> bool:
        Compared.looks += 1
        return int(self) <= other


@pytest.mark.parametrize("spread", [60, 10**6])
def test_a_cut_looks_at_few_pieces_for_each_item(spread: int) -> None:
    """No more than the tree over the pieces is high, be there many items of a length or one."""
    count = 4000
    lengths = [Compared(n) for n in np.random.default_rng(0).integers(spread // 3, spread, count)]
    Compared.looks = 0
    pieces = cut(lengths, 2 * spread, Layout.shared)
    assert len(pieces) > count // 5
    assert Compared.looks <= count * 12 + 1


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_what_is_longer_than_the_budget_stands_alone(layout: Layout) -> None:
    assert cut([50, 2, 2], 4, layout) == [[0], [1, 2]]


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_no_packed_micro_batch_is_larger_than_the_budget(layout: Layout) -> None:
    for batch, _ in batches(max_tokens=24, layout=layout).once():
        assert batch.input_ids.numel() <= 24


def test_packed_batches_remember_their_rows() -> None:
    data = batches()
    pieces = data.packer.train_batches(data.examples, [5, 2, 9])
    assert sorted(row for batch in pieces for row in batch.rows.tolist()) == [2, 5, 9]
    for batch in pieces:
        lengths = [len(data.examples[row].prompt_ids) - 1 for row in batch.rows.tolist()]
        assert batch.prompt_lengths.tolist() == lengths


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    forward = [batches(seed=3).step_rows(step) for step in range(12)]
    data = batches(seed=3)
    np.random.seed(0)
    assert [data.step_rows(step) for step in reversed(range(12))] == forward[::-1]
    assert [batches(seed=4).step_rows(step) for step in range(12)] != forward


@pytest.mark.parametrize("size", [1, 4, 11, 25])
def test_every_epoch_is_a_permutation(size: int) -> None:
    """Passes are laid end to end: a step may end one pass and begin the next."""
    data, count = batches(size=size), len(LENGTHS)
    stream = [row for step in range(-(-3 * count // size)) for row in data.step_rows(step)]
    epochs = [stream[k * count : (k + 1) * count] for k in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(count))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_step_packs_its_rows() -> None:
    data = batches()
    for step in range(4):
        assert sorted(row for batch in data.step(step) for row in batch.rows.tolist()) == sorted(data.step_rows(step))


def test_once_is_every_example_once() -> None:
    assert sorted(row for batch, _ in batches().once() for row in batch.rows.tolist()) == list(range(len(LENGTHS)))


def test_a_pass_is_packed_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One micro-batch at a time: a pass over a million rows has not all of their tensors at once."""
    packed: list[int] = []
    once = Packer.batch

    def noted(self: Packer, examples: Any, rows: Any) -> Any:
        packed.extend(rows)
        return once(self, examples, rows)

    monkeypatch.setattr(Packer, "batch", noted)
    even = batches().once()
    assert len(even) == 4
    assert packed == []
    first, counts = next(iter(even))
    assert counts
    assert packed == first.rows.tolist()
    assert [batch.rows.tolist() for batch in even.counted[1:3]] == [[0, 7, 2], [8, 5, 3, 10, 1]]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_rows_of_are_those_the_steps_touch(num_steps: int) -> None:
    data = batches()
    touched = {row for step in range(num_steps) for row in data.step_rows(step)}
    assert data.rows_of(num_steps) == sorted(touched)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (2, 6), (0.5, 2), (0.01, 1), (4, 11)])
def test_steps_of_so_many_passes(epochs: float, steps: int) -> None:
    assert batches(size=4).num_steps(TrainConfig(epochs=epochs)) == steps


def test_max_steps_is_the_number_of_steps() -> None:
    assert batches().num_steps(TrainConfig(max_steps=5)) == 5


def test_shuffled_is_pure_and_changes_with_seed_and_epoch() -> None:
    first = shuffled(50, 1, 2).tolist()
    assert shuffled(50, 1, 2).tolist() == first
    assert sorted(first) == list(range(50))
    assert shuffled(50, 1, 3).tolist() != first != shuffled(50, 2, 2).tolist()


def test_lengths_count_a_shared_prompt_once() -> None:
    pair = Example(np.arange(5), (np.arange(3), np.arange(4)), None, Source("rows.jsonl", 1), (True, True))
    assert packed_length(pair, Layout.shared) == 12


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("max_tokens", [30, 100, 10_000])
def test_deal_gives_every_rank_as_many_micro_batches_and_every_item_once(num_ranks, max_tokens):
    lengths = [int(n) for n in np.random.default_rng(max_tokens).integers(5, 30, 24)]
    dealt = deal(cut(lengths, max_tokens, Layout.separate), lengths, num_ranks)
    assert len({len(pieces) for pieces in dealt}) == 1
    assert sorted(i for pieces in dealt for piece in pieces for i in piece) == list(range(24))
    assert all(len(piece) * max(lengths[i] for i in piece) <= max_tokens for pieces in dealt for piece in pieces)
    if max_tokens == 30:
        tokens = [sum(lengths[i] for piece in pieces for i in piece) for pieces in dealt]
        assert max(tokens) - min(tokens) <= max(lengths)


def test_deal_refuses_what_cannot_be_even():
    with pytest.raises(ValueError, match=r"^batch.size must be a multiple of the 3 processes, got 4$"):
        deal([[0], [1], [2], [3]], [5, 5, 5, 5], 3)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_ranks_steps_together_are_the_step(num_ranks):
    rng = np.random.default_rng(3)
    rows = examples([int(n) for n in rng.integers(3, 18, 20)])
    config = BatchConfig(size=6, max_tokens=60, layout=Layout.shared)
    whole = Batches(rows, Packer(config, 0), 5)
    parts = [Batches(rows, Packer(config, 0, rank, num_ranks), 5) for rank in range(num_ranks)]
    for step in range(4):
        dealt = [batch.rows.tolist() for part in parts for batch in part.step(step)]
        assert sorted(row for part in dealt for row in part) == sorted(whole.step_rows(step))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(("count", "max_tokens"), [(20, 60), (20, 10_000), (5, 1), (1, 60), (2, 60)])
def test_a_pass_is_shared_out_and_every_rank_runs_as_many_micro_batches(num_ranks, count, max_tokens):
    rows = examples([int(n) for n in np.random.default_rng(count).integers(3, 18, count)])
    config = BatchConfig(size=6, max_tokens=max_tokens, layout=Layout.shared)
    parts = [Packer(config, 0, rank, num_ranks).eval_batches(rows) for rank in range(num_ranks)]
    counted = [batch for part in parts for batch, counts in part if counts]
    assert sorted(row for batch in counted for row in batch.rows.tolist()) == list(range(count))
    assert len({len(part) for part in parts}) == len({len(list(part)) for part in parts}) == 1
    others = [Packer(config, 0, rank, num_ranks, counts=False).eval_batches(rows) for rank in range(num_ranks)]
    for part, other in zip(parts, others, strict=True):
        read = [[(batch.rows.tolist(), counts) for batch, counts in each] for each in (part, other)]
        assert [(rows, False) for rows, _ in read[0]] == read[1], "the same rows in the same order, not counted"
    if count >= 5 and max_tokens > 60:
        assert not any(part.extra for part in parts), "halved rather than run twice"

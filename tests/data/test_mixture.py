"""Steps of several sources: exact shares, each source's own passes, and a function of seed and step alone."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from alignment.config.batch import BatchConfig, Layout
from alignment.config.sources import MixedSource, TrainSource
from alignment.config.train import TrainConfig
from alignment.data.batches import Batches, Packer
from alignment.data.mixture import Order, Portion, drawn, portions, shuffled, spans, weights_of
from alignment.data.records import Source
from alignment.data.tokenize import Example

ROWS = {"big": 40, "mid": 10, "small": 3}


def mix(weights: dict[str, float] | None = None, temperature: float = 1.0) -> TrainSource:
    given = weights or dict.fromkeys(ROWS)
    named = {name: MixedSource(path=f"{name}.jsonl", weight=weight) for name, weight in given.items()}
    return TrainSource(mix=named, temperature=temperature)


def parts(source: TrainSource, rows: dict[str, int] | None = None) -> tuple[Portion, ...]:
    rows = rows or ROWS
    return portions(rows, weights_of(source, rows))


def examples(count: int) -> list[Example]:
    ids = np.arange(2, dtype=np.int32)
    return [Example(ids, (ids,), None, Source("rows.jsonl", i + 1), (True,)) for i in range(count)]


def batches(source: TrainSource, size: int = 8, rank: int = 0, num_ranks: int = 1) -> Batches:
    packer = Packer(BatchConfig(size=size, max_tokens=16, layout=Layout.shared), 0, rank, num_ranks)
    return Batches(examples(sum(ROWS.values())), packer, 5, parts(source))


def test_weights_are_shares_and_without_them_rows_to_the_power_of_one_over_t() -> None:
    assert [part.share for part in parts(mix({"big": 2, "mid": 1, "small": 1}))] == [0.5, 0.25, 0.25]
    assert [part.share for part in parts(mix())] == pytest.approx([40 / 53, 10 / 53, 3 / 53])
    roots = [np.sqrt(count) for count in ROWS.values()]
    assert [part.share for part in parts(mix(temperature=2))] == pytest.approx([root / sum(roots) for root in roots])
    assert [part.share for part in parts(mix(temperature=float("inf")))] == [1 / 3] * 3


@pytest.mark.parametrize("weights", [(2, 1, 1), (0.7, 0.2, 0.1), (1, 1, 1), (100, 1, 1), (3, 1, 9)])
def test_any_places_from_the_first_on_hold_their_shares_to_within_half_a_draw_a_source(weights) -> None:
    shares = np.array(weights) / sum(weights)
    sources, _ = drawn(shares, 0, 2000)
    held = np.cumsum(sources[:, None] == np.arange(3), axis=0)
    assert np.abs(held - np.arange(1, 2001)[:, None] * shares).max() <= 1.5


def test_shares_that_a_step_holds_exactly_are_in_each_step_exactly() -> None:
    data, where = batches(mix({"big": 2, "mid": 1, "small": 1})), spans(ROWS)
    for step in range(40):
        rows = data.step_rows(step)
        assert [sum(row in span for row in rows) for span in where.values()] == [4, 2, 2]


@pytest.mark.parametrize("seed", range(4))
def test_places_are_draws_in_the_order_in_which_they_fall_due(seed) -> None:
    """Against the same in fractions, draw by draw; and a window has what the whole has there."""
    rng = np.random.default_rng(seed)
    weights = [int(weight) for weight in rng.integers(1, 9, rng.integers(1, 6))]
    shares = np.array(weights) / sum(weights)
    falling = [
        (Fraction(2 * k + 1, 2) * sum(weights) / weight, source, k)
        for source, weight in enumerate(weights)
        for k in range(500)
    ]
    ties = Counter(due for due, _, _ in falling)
    sources, draws = drawn(shares, 0, 400)
    for place, (due, source, k) in enumerate(sorted(falling)[:400]):
        assert ties[due] > 1 or (sources[place], draws[place]) == (source, k)
    for first, last in ((0, 1), (7, 7), (123, 260), (399, 400)):
        within = drawn(shares, first, last)
        assert [part.tolist() for part in within] == [sources[first:last].tolist(), draws[first:last].tolist()]


def test_a_source_goes_through_shuffled_passes_of_its_own() -> None:
    """The k-th draw from a source is the k-th of its passes, whatever the others' shares."""
    for source in (mix({"big": 2, "mid": 1, "small": 1}), mix({"big": 1, "mid": 1, "small": 5})):
        data = batches(source)
        stream = [row for step in range(60) for row in data.step_rows(step)]
        for number, span in enumerate(spans(ROWS).values()):
            own = [row - span.start for row in stream if row in span]
            passes = [shuffled(len(span), 5, epoch, number).tolist() for epoch in range(-(-len(own) // len(span)))]
            assert own == [row for each in passes for row in each][: len(own)]


def test_rows_that_count_alike_are_each_drawn_once_in_as_many_places_as_there_are_rows() -> None:
    order = Order(parts(mix()), 1)
    for epoch in range(5):
        assert sorted(order.rows(53 * epoch, 53 * epoch + 53).tolist()) == list(range(53))


def test_a_source_alone_is_in_the_order_of_data_without_a_name() -> None:
    count = 11
    data = examples(count)
    packer = Packer(BatchConfig(size=4, max_tokens=16, layout=Layout.shared), 0)
    plain = Batches(data, packer, 3)
    alone = Batches(data, packer, 3, (Portion("a", count, 1.0),))
    assert [plain.step_rows(step) for step in range(9)] == [alone.step_rows(step) for step in range(9)]
    want = [int(np.random.default_rng([3, place // count]).permutation(count)[place % count]) for place in range(36)]
    assert [row for step in range(9) for row in plain.step_rows(step)] == want


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    source = mix({"big": 5, "mid": 2, "small": 1})
    forward = [batches(source).step_rows(step) for step in range(30)]
    data = batches(source)
    assert [data.step_rows(step) for step in reversed(range(30))] == forward[::-1]


def test_the_ranks_steps_together_are_the_step() -> None:
    source = mix({"big": 5, "mid": 2, "small": 1})
    whole, ranks = batches(source), [batches(source, rank=rank, num_ranks=2) for rank in range(2)]
    for step in range(12):
        dealt = [row for data in ranks for batch in data.step(step) for row in batch.rows.tolist()]
        assert sorted(dealt) == sorted(whole.step_rows(step))


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5, 30])
def test_rows_of_are_those_the_steps_touch_and_counts_what_each_source_gives(num_steps) -> None:
    data = batches(mix({"big": 1, "mid": 1, "small": 5}))
    stream = [row for step in range(num_steps) for row in data.step_rows(step)]
    assert data.rows_of(num_steps) == sorted(set(stream))
    assert data.order.counts(8 * num_steps) == [sum(row in span for row in stream) for span in spans(ROWS).values()]


def test_epochs_draw_as_many_rows_as_there_are_times_the_epochs() -> None:
    data = batches(mix({"big": 1, "mid": 1, "small": 5}))
    assert data.num_steps(TrainConfig(epochs=2)) == 14  # of 106 rows, 8 a step
    assert (data.epoch(1), data.epoch(14)) == (0.1509, 2.1132)


def test_sets_are_where_the_rows_of_each_source_stand() -> None:
    assert batches(mix()).sets() == {"big": range(40), "mid": range(40, 50), "small": range(50, 53)}
    assert Batches(examples(3), batches(mix()).packer, 0).sets() == {"": range(3)}

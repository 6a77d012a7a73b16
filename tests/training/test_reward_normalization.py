"""The statistics of a reward model's scores, against the scores themselves."""

from collections.abc import Callable

import pytest
import torch

from alignment.config.batch import BatchConfig, Layout
from alignment.data.batches import Batches, Packer
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.models.readout import sequence_scores
from alignment.training import reward_normalization
from alignment.training.reward_normalization import reward_statistics


def batches(pairs: list[Example], size: int) -> Batches:
    return Batches(pairs, Packer(BatchConfig(size=size, max_tokens=30, layout=Layout.shared), 0), 0)


@torch.no_grad()
def scores(engine: TorchEngine, pairs: list[Example]) -> torch.Tensor:
    return torch.cat([sequence_scores(engine.model, batch) for batch, _ in batches(pairs, len(pairs)).once()]).double()


def test_held_out_pairs_are_taken_where_there_are_some(
    descent: Callable[..., TorchEngine], pairs: list[Example]
) -> None:
    engine = descent("scalar")
    found = reward_statistics(engine, batches(pairs[:2], 2), batches(pairs[2:], 3))
    expected = scores(engine, pairs[2:])
    assert (found.count, found.split) == (8, "eval")
    assert found.mean == pytest.approx(expected.mean().item(), rel=1e-5)
    assert found.std == pytest.approx(expected.std().item(), rel=1e-5)


@pytest.mark.parametrize(("enough", "count"), [(1000, 8), (5, 8), (3, 4), (1, 4)])
def test_else_whole_steps_of_training_pairs_and_no_more_than_enough(
    descent: Callable[..., TorchEngine],
    pairs: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    enough: int,
    count: int,
) -> None:
    """Two pairs a step, four scores; of five pairs, two whole steps."""
    monkeypatch.setattr(reward_normalization, "ENOUGH_PAIRS", enough)
    engine, train = descent("scalar"), batches(pairs[:5], 2)
    found = reward_statistics(engine, train, None)
    rows = train.rows_of(count // 4)
    expected = scores(engine, [pairs[row] for row in rows])
    assert (found.count, found.split, len(rows)) == (count, "train", count // 2)
    assert found.mean == pytest.approx(expected.mean().item(), rel=1e-5)
    assert found.std == pytest.approx(expected.std().item(), rel=1e-5)

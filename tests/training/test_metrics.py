"""Rows of sets and what is made of means."""

import math

import pytest
import torch

from alignment.losses import Mean
from alignment.training.metrics import Metrics, of_sets, with_perplexity


def mean(total: float, count: int) -> Mean:
    return Mean(torch.tensor(total), torch.tensor(count))


def plain(name: str, means: dict[str, float]) -> dict[str, float]:
    return means


def test_pairs_are_counted_set_by_set_and_together() -> None:
    found = {name: Metrics({"rewards/accuracy": mean(1.0, count)}) for name, count in (("a", 2), ("b", 6))}
    row = of_sets(found, plain)
    assert (row["rewards/pairs"], row["a/rewards/pairs"], row["b/rewards/pairs"]) == (8.0, 2.0, 6.0)
    assert row["rewards/accuracy"] == 0.25


def test_sets_together_are_totals_over_counts_and_each_named_set_has_its_own() -> None:
    found = {"a": Metrics(loss=mean(6.0, 2), own=mean(1.0, 1)), "b": Metrics(loss=mean(2.0, 6))}
    want = {"loss": 1.0, "own": 1.0, "a/loss": 3.0, "a/own": 1.0, "b/loss": pytest.approx(1 / 3)}
    assert of_sets(found, plain) == want
    assert of_sets({"": Metrics(loss=mean(6.0, 2))}, plain) == {"loss": 3.0}


def test_what_is_no_mean_is_made_of_each_set_s_means() -> None:
    found = {"a": Metrics({"logps/token": mean(-4.0, 2)}), "b": Metrics({"logps/token": mean(-2.0, 4)})}
    row = of_sets(found, lambda _, means: with_perplexity(means))
    assert {name: value for name, value in row.items() if "perplexity" in name} == {
        "perplexity": pytest.approx(math.e),
        "a/perplexity": pytest.approx(math.exp(2)),
        "b/perplexity": pytest.approx(math.exp(0.5)),
    }


@pytest.mark.parametrize("row", [{"loss": 1.0}, {"logps/token": -1e4}])
def test_rows_without_a_token_s_log_prob_or_beyond_floats_have_no_perplexity(row) -> None:
    assert with_perplexity(row) == row

"""Diagnostics of replies, worked out by hand, and the same however replies are dealt to batches and processes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from alignment.generation.diagnostics import (
    derived,
    diagnostics,
    distinct_ngrams,
    gold_metrics,
    moments,
    standard_errors,
)
from alignment.generation.samples import Samples
from alignment.losses import Mean

SamplesOf = Callable[[list[list[str]]], Samples]


def ids(text: str) -> np.ndarray:
    return np.array([ord(letter) for letter in text], dtype=np.int32)


def share(mean: Mean) -> tuple[float, int]:
    return mean.total.item(), int(mean.count)


def floats(means: dict[str, Mean]) -> dict[str, float]:
    return {name: mean.total.item() / int(mean.count) for name, mean in means.items() if mean.count > 0}


@pytest.mark.parametrize(
    ("n", "distinct", "count"),
    [
        (1, 3, 7),  # a b c of abab, bc, a
        (2, 3, 4),  # ab ba ab | bc
        (3, 2, 2),  # aba bab
        (4, 1, 1),
    ],
)
def test_distinct_ngrams_over_all_replies_together(n: int, distinct: int, count: int) -> None:
    assert share(distinct_ngrams([ids("abab"), ids("bc"), ids("a")], n)) == (distinct, count)


def test_an_ngram_does_not_cross_from_one_reply_to_the_next() -> None:
    assert share(distinct_ngrams([ids("ab"), ids("ab")], 2)) == (1, 2)
    assert share(distinct_ngrams([ids("abab")], 2)) == (2, 3)


@pytest.mark.parametrize("replies", [[], [""], ["", "a"]])
def test_without_ngrams_nothing_is_counted(replies: list[str]) -> None:
    assert share(distinct_ngrams([ids(text) for text in replies], 2)) == (0, 0)


def test_the_end_of_a_reply_is_no_word(samples_of: SamplesOf) -> None:
    """ "aa" and "ba" end with EOS, "AB" is cut: five letters of which four differ, no EOS among them."""
    metrics = diagnostics(samples_of([["aa", "b"], ["AB", "a"]]), torch.zeros(2, 2))
    assert share(metrics["distinct_1"]) == (4, 6)  # a b A B of a a b A B a
    assert share(metrics["distinct_2"]) == (2, 2)  # aa AB
    assert share(metrics["distinct_3"]) == (0, 0)


def test_length_against_reward_by_hand(samples_of: SamplesOf) -> None:
    """Lengths with EOS 2, 3, 4, 3 and rewards 1, 2, 2, 3: covariance 1/4, variances 1/2 and 1/2, correlation 1/2."""
    row = derived(floats(diagnostics(samples_of([["a", "bb"], ["ccc", "dd"]]), torch.tensor([[1.0, 2.0], [2.0, 3.0]]))))
    assert row["length"] == 3
    assert row["length/reward_correlation"] == pytest.approx(0.5, abs=1e-12)
    assert not [name for name in row if name.startswith("moments/")]


@pytest.mark.parametrize(("slope", "sign"), [(2.0, 1.0), (-0.001, -1.0)])
def test_on_a_line_the_correlation_is_its_sign(slope: float, sign: float) -> None:
    lengths = torch.arange(1, 9, dtype=torch.float64)
    row = derived(floats(moments(lengths, 5 + slope * lengths)))
    assert row["length/reward_correlation"] == pytest.approx(sign, abs=1e-9)
    assert abs(row["length/reward_correlation"]) <= 1


def test_the_correlation_is_that_of_numpy_however_replies_are_dealt() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 400, 60).astype(float)
    rewards = 30 + 0.01 * lengths + rng.normal(0, 1, 60)
    parts = [moments(torch.tensor(lengths[a:b]), torch.tensor(rewards[a:b])) for a, b in ((0, 7), (7, 50), (50, 60))]
    added = {name: parts[0][name] + parts[1][name] + parts[2][name] for name in parts[0]}
    expected = np.corrcoef(lengths, rewards)[0, 1]
    assert derived(floats(added))["length/reward_correlation"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("lengths", "rewards"), [([3.0] * 4, [1.0, 2, 3, 4]), ([1.0, 2, 3, 4], [0.1] * 4), ([5.0], [1.0])]
)
def test_where_nothing_varies_there_is_no_correlation(lengths: list[float], rewards: list[float]) -> None:
    row = derived(floats(moments(torch.tensor(lengths).double(), torch.tensor(rewards).double())))
    assert row == {"length": pytest.approx(np.mean(lengths))}


def test_the_square_root_of_kl_and_other_metrics_stay() -> None:
    assert derived({"kl": 2.25, "gold": 0.5}) == {"kl": 2.25, "kl/sqrt": 1.5, "gold": 0.5}
    assert derived({"kl": -0.01})["kl/sqrt"] == 0  # an estimate may be below 0
    assert derived({"loss": 1.0}) == {"loss": 1.0}


PROGRAM = """
import json, os, sys
import numpy as np, torch, torch.distributed as dist
from alignment.data.records import Source
from alignment.generation.diagnostics import (
    derived,
    diagnostics,
    distinct_ngrams,
    gold_metrics,
    moments,
    standard_errors,
)
from alignment.generation.generate import Reply
from alignment.generation.samples import Samples, places_of
from alignment.training.metrics import Metrics

rank, size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
rng = np.random.default_rng(0)
rows = [[Reply(rng.integers(0, 9, rng.integers(1, 20)).astype(np.int32), bool(rng.integers(2)), "")] for _ in range(7)]
rewards = torch.tensor(rng.normal(0, 1, (7, 1)))
mine = places_of(7)
samples = Samples([None for _ in mine], [None for _ in mine], [rows[place] for place in mine]).joined()
found = diagnostics(samples, rewards)
print(json.dumps(derived(Metrics(found).means())), flush=True)
dist.barrier()
os._exit(0)  # the group's threads may be late to let go of a tensor
"""


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    def started(rank: int, size: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PROGRAM, str(rank), str(size), str(tmp_path / f"store-{size}")]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    processes = [started(0, 1), started(0, 2), started(1, 2)]
    one, first, second = (json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes)
    assert first == second == pytest.approx(one, abs=1e-12)
    assert {"distinct_1", "distinct_2", "distinct_3", "length", "length/reward_correlation"} == one.keys()


def test_standard_errors_are_those_of_the_means(samples_of: Callable[..., Samples]) -> None:
    samples, rewards = samples_of([["ab"], ["cde"], ["f"]]), torch.tensor([[1.0], [2.0], [4.0]])
    means = {name: (mean.total / mean.count).item() for name, mean in diagnostics(samples, rewards).items()}
    gold = {name: (mean.total / mean.count).item() for name, mean in gold_metrics(torch.ones(3, 1)).items()}
    errors = standard_errors({**means, **gold}, 3)
    assert errors == {"stderr/reward": pytest.approx(rewards.std().item() / 3**0.5), "stderr/gold": 0.0}
    assert standard_errors(means, 1) == {}
    assert "gold" in derived({**means, **gold}) and not any("moments" in name for name in derived({**means, **gold}))

"""Where time and memory go: what is counted, and what is divided by what."""

import time

import numpy as np
import pytest
import torch

from alignment.config.batch import Layout
from alignment.data.pack import pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.training import timer as module
from alignment.training.timer import StepTimer, step_flops

CPU = torch.device("cpu")


def examples() -> list[Example]:
    """Two prompts of 3 and 5 tokens with completions of 2 and 4."""
    ids = [(np.arange(3), np.arange(2)), (np.arange(5), np.arange(4))]
    return [Example(prompt, (reply,), None, Source("rows", 1), (True,)) for prompt, reply in ids]


def test_parts_add_up_and_begin_anew_with_each_row() -> None:
    timer = StepTimer(CPU)
    for _ in range(2):
        with timer.part("learn"):
            time.sleep(0.02)
    with timer.part("save"):
        pass
    row = timer.take()
    assert 0.04 <= row["time/learn_s"] <= row["time/step_s"] and row["time/save_s"] < 0.02
    assert row["time/memory_gb"] > 0.01 and "time/tokens_per_s" not in row
    assert timer.take().keys() == {"time/step_s", "time/memory_gb"}


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_padding_is_no_token(layout: Layout) -> None:
    timer = StepTimer(CPU)
    batch = pack(examples(), [0, 1], layout=layout, pad_id=0)
    timer.count([batch, batch])
    read = 2 * int((batch.groups >= 0).sum())
    assert timer.tokens == read and 2 * (3 + 5) < read <= 2 * (3 + 2 + 5 + 4)


def test_tokens_a_second_are_of_all_processes_and_mfu_is_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 tokens a process in half a second at 6 operations a token, of a peak of 10,000 a second: 0.12."""
    timer = StepTimer(CPU, flops_per_token=6.0)
    timer.tokens = 100
    moments = iter([timer.last + 0.5])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(moments))
    monkeypatch.setattr(module, "gathered", lambda own: [own, (own[0], 7.0)])
    monkeypatch.setattr(module, "peak_flops", lambda device: 10_000.0)
    row = timer.take()
    assert row["time/tokens_per_s"] == 400 and row["time/mfu"] == pytest.approx(0.12)
    assert row["time/memory_gb/rank_1"] == 7.0 == row["time/memory_gb"]


def test_an_unknown_device_has_no_mfu() -> None:
    timer = StepTimer(CPU, flops_per_token=6.0)
    timer.tokens = 1
    assert "time/mfu" not in timer.take()


def test_the_operations_of_a_token() -> None:
    assert step_flops(10, 10) == 60
    assert step_flops(10, 0) == 40  # an adapter's own weights are few

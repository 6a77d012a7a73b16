"""The learning rate that follows from the tokens of a step."""

import json
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.training.rate import num_learned, suggested_rate

RULE = "train.learning_rate_rule=tokens"
SMALL = ("data.train.limit=64", "data.eval.limit=8", "train.max_steps=2", "batch.size=16", "train.warmup_steps=0")


@pytest.mark.parametrize(
    ("tokens", "weights", "family", "rate"),
    [
        (4e6, 7e9, "llama", 3e-4),
        (1e6, 7e9, "llama", 1.5e-4),
        (1e6, 70e9, "llama", 0.75e-4),
        (1e6, 7e9, "mistral", 0.25e-4),
        (250_000, 7e9, "gemma2", 0.125e-4),
    ],
)
def test_a_rate_rises_with_the_root_of_a_step(tokens: float, weights: float, family: str, rate: float) -> None:
    assert suggested_rate(tokens, weights, family) == pytest.approx(rate)


def test_what_carries_no_loss_is_not_counted() -> None:
    ids = np.arange(5, dtype=np.int32)
    all_of_it = Example(ids, (ids,), None, Source("rows", 1), (True,))
    some = Example(ids, (ids,), None, Source("rows", 1), (True,), learned=(np.array([True, False, True, True, False]),))
    assert (num_learned(all_of_it), num_learned(some)) == (5, 3)


def test_a_run_takes_it_for_its_own_rows(alignment: Callable[..., Any], tmp_path: Path) -> None:
    ended = alignment("run", "tiny_sft", *SMALL, RULE, "train.schedule=constant", f"output_dir={tmp_path}/run")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("learning rate: ")]
    assert line.endswith("in place of train.learning_rate=0.003") and "cal_lr.py" in line
    tokens = float(line.split(" for ")[1].split(" learned")[0].replace(",", ""))
    assert 16 * 5 < tokens < 16 * 50
    rows = [json.loads(each) for each in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["lr"] == pytest.approx(3e-4 * sqrt(tokens / 4e6), rel=1e-2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tiny_dpo", RULE), "must be none but for sft of all weights by AdamW"),
        (("tiny_sft", RULE, "model.lora.rank=4"), "must be none but for sft of all weights by AdamW"),
        (("tiny_sft", RULE, "train.optimizer=sgd"), "must be none but for sft of all weights by AdamW"),
        (("tiny_sft", RULE, "train.learning_rate=1e-4"), "leave out one of the two"),
    ],
)
def test_it_is_refused_where_it_is_not_for(
    words: tuple[str, ...], said: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    ended = alignment("run", *words, f"output_dir={tmp_path}/run")
    assert ended.code == 2 and "train.learning_rate_rule" in ended.err[-1] and said in ended.err[-1]
    assert not (tmp_path / "run").exists()

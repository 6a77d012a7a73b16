"""Online DPO in whole runs: where it begins."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "log.progress=false", "seed=3"]
SMALL = [*TINY, "data.train.limit=32", "data.eval.limit=null", "batch.size=8", "generation.max_new_tokens=10"]
RUN = ["run", "tiny_online_dpo", *SMALL, "num_samples=2", "train.max_steps=1"]


def test_the_first_step_begins_at_the_reference_whatever_the_temperature(
    alignment: Callable[..., Any], tmp_path: Path
) -> None:
    """The policy is the reference then, each of the two replies as likely under both: no margin, a loss of ln 2."""
    (tmp_path / "rule_of_place.py").write_text(
        "def rule(prompts, replies):\n    return [float(k) for k in range(len(replies))]\n"
    )
    ended = alignment(*RUN, "generation.temperature=0.7", "reward.function=rule_of_place.rule", "output_dir=out")
    assert (ended.code, ended.err) == (0, [])
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert row["pairs"] == 1
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margin"):
        assert row[name] == pytest.approx(0.0, abs=1e-5)
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-5)

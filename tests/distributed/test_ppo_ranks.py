"""PPO's ten iterations and rejection sampling are the same in one process, in two, and under each ZeRO stage.

Four roles: actor and critic in engines of their own, reference and reward frozen, whole or (ZeRO 3) shared out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

STAGES = ("0", "1", "2", "3")
TOLERANCE = 1e-5
LIVE = "generation/live_fraction"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ppo")
    script, found = Path(__file__).with_name("ppo_ranks.py"), {}
    for processes, stages in ((1, ("none",)), (2, STAGES)):
        out = folder / f"{processes}.json"
        run_ranks(script, [str(out), *stages], processes=processes)
        found |= json.loads(out.read_text())
    return folder, found


def comparable(row: dict[str, float]) -> dict[str, float]:
    """Time and padding are not the same on any number of processes."""
    return {name: value for name, value in row.items() if not name.startswith("time/") and name != LIVE}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("task", ["ppo", "rejection"])
def test_two_processes_are_one(task: str, stage: str, results: tuple[Path, dict[str, Any]]) -> None:
    plain, shared = results[1][f"{task}/none"], results[1][f"{task}/{stage}"]
    assert shared["shown"] == plain["shown"] != []
    assert len(shared["rows"]) == len(plain["rows"]) == (10 if task == "ppo" else 1)
    for mine, theirs in zip(shared["rows"], plain["rows"], strict=True):
        assert comparable(mine) == pytest.approx(comparable(theirs), rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("stage", STAGES)
def test_they_save_the_same_model(stage: str, results: tuple[Path, dict[str, Any]]) -> None:
    for name in ("model", "best"):
        plain, shared = (
            load_file(results[0] / run / name / "model.safetensors") for run in ("ppo-none-1", f"ppo-{stage}-2")
        )
        assert plain.keys() == shared.keys()
        assert all(torch.allclose(plain[key], shared[key], atol=1e-4) for key in plain)


def test_the_run_learned_something_to_compare(results: tuple[Path, dict[str, Any]]) -> None:
    rows = results[1]["ppo/none"]["rows"]
    assert rows[0]["policy/steps"] == 0 and rows[-1]["policy/steps"] == 4
    assert abs(rows[-1]["kl"]) > 1e-3 and rows[-1]["kl/weight"] != rows[0]["kl/weight"]
    assert {"ptx/loss", "eval/reward", "gold", "reward/model"} <= {name for row in rows for name in row}


def test_rejection_writes_the_same_rows(results: tuple[Path, dict[str, Any]]) -> None:
    written = {
        run: (results[0] / run / "selected.jsonl").read_text()
        for run in ("rejection-none-1", *(f"rejection-{stage}-2" for stage in STAGES))
    }
    assert len(set(written.values())) == 1 and written["rejection-none-1"]

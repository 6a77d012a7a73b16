"""131,072 pieces, all of which are drawn: the tasks that reply are the same in one process, in two, and under each ZeRO
stage; PPO under ZeRO 3 in every run of the tests, the others with -m slow."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STAGES = ("0", "1", "2", "3")
ROWS = {"ppo": 10, "grpo": 10, "online_dpo": 10, "rejection": 1, "evaluate": 0}
CASES = [
    pytest.param(task, stage, marks=[] if (task, stage) == ("ppo", "3") else pytest.mark.slow)
    for task in ROWS
    for stage in STAGES
]
TOLERANCE = 1e-5
PER_RUN = ("time/", "generation/live_fraction")  # times, and padding
ROOT = "kl/sqrt"  # of `kl`, which is compared: near 0 a root makes hundreds of times as much of a difference
Run = Callable[[str, str, int], dict[str, Any]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> Run:
    """`ran(task, stage, processes)`: the rows of its log, but for times, and its samples; or its summary."""
    script, found = Path(__file__).with_name("vocabulary_ppo_ranks.py"), {}

    def of(task: str, stage: str, processes: int) -> dict[str, Any]:
        if (task, stage) not in found:
            out = tmp_path_factory.mktemp(task) / f"{stage}.json"
            run_ranks(script, [str(out), f"{task}/{stage}"], processes=processes)
            found[task, stage] = json.loads(out.read_text())[f"{task}/{stage}"]
        return found[task, stage]

    return of


def compared(found: dict[str, Any]) -> list[dict[str, float]]:
    rows = [found["summary"]] if "summary" in found else found["rows"]
    for row in rows:
        assert ROOT not in row or row[ROOT] == pytest.approx(math.sqrt(max(row["kl"], 0)))
    return [{name: value for name, value in row.items() if not name.startswith((*PER_RUN, ROOT))} for row in rows]


@pytest.mark.parametrize(("task", "stage"), CASES)
def test_two_processes_are_one(task: str, stage: str, ran: Run, assert_close: Callable[..., None]) -> None:
    plain, shared = ran(task, "none", 1), ran(task, stage, 2)
    assert len(plain["shown"]) == len(shared["shown"]) > 0 and len(plain.get("rows", [])) == ROWS[task]
    assert_close(shared["shown"], plain["shown"], tolerance=TOLERANCE)
    assert_close(compared(shared), compared(plain), tolerance=TOLERANCE)


def test_there_was_something_to_compare(ran: Run) -> None:
    rows, shown = ran("ppo", "none", 1)["rows"], ran("ppo", "none", 1)["shown"]
    assert abs(rows[-1]["kl"]) > 1e-4 and rows[0]["kl"] == 0 and rows[-1]["policy/steps"] > 0
    assert sum("word" in reply for reply in shown) > len(shown) / 2

"""131,072 pieces, all of which are drawn: PPO, rejection sampling and an evaluation are the same in one process, in
two, and under each ZeRO stage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STAGES = ("0", "1", "2", "3")
ROWS = {"ppo": 10, "rejection": 1}
TOLERANCE = 1e-5
PER_RUN = ("time/", "generation/live_fraction")  # times, and padding


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> dict[str, Any]:
    folder, found = tmp_path_factory.mktemp("vocabulary"), {}
    for processes, stages in ((1, ("none",)), (2, STAGES)):
        out = folder / f"{processes}.json"
        run_ranks(Path(__file__).with_name("vocabulary_ppo_ranks.py"), [str(out), *stages], processes=processes)
        found |= json.loads(out.read_text())
    return found


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("task", ROWS)
def test_two_processes_are_one(
    task: str, stage: str, results: dict[str, Any], assert_close: Callable[..., None]
) -> None:
    plain, shared = (results[f"{task}/{which}"] for which in ("none", stage))
    assert shared["shown"] == plain["shown"] != [] and len(plain["rows"]) == ROWS[task]
    mine, theirs = (
        [{name: value for name, value in row.items() if not name.startswith(PER_RUN)} for row in run["rows"]]
        for run in (shared, plain)
    )
    assert_close(mine, theirs, tolerance=TOLERANCE)


@pytest.mark.parametrize("stage", STAGES)
def test_an_evaluation_finds_the_same(stage: str, results: dict[str, Any], assert_close: Callable[..., None]) -> None:
    assert_close(results[f"evaluate/{stage}"], results["evaluate/none"], tolerance=TOLERANCE)


def test_there_was_something_to_compare(results: dict[str, Any]) -> None:
    rows = results["ppo/none"]["rows"]
    assert abs(rows[-1]["kl"]) > 1e-4 and rows[0]["kl"] == 0 and rows[-1]["policy/steps"] > 0
    assert sum("word" in reply for reply in results["ppo/none"]["shown"]) > len(results["ppo/none"]["shown"]) / 2
    methods = {row["name"]: row for row in results["evaluate/none"]["summary"]["methods"]}
    assert methods["first"]["kl"]["mean"] == 0 and abs(methods["last"]["kl"]["mean"]) > 1e-3

"""131,072 pieces, all of which are drawn: PPO is the same in one process, in two, and under each ZeRO stage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STAGES = [*(pytest.param(stage, marks=pytest.mark.slow) for stage in ("0", "1", "2")), "3"]
TOLERANCE = 1e-5
PER_RUN = ("time/", "generation/live_fraction")  # times, and padding
Run = Callable[[str, int], dict[str, Any]]


@pytest.fixture(scope="module")
def ppo(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> Run:
    """`ppo(stage, processes)`: the rows of its log, but for times, and its samples."""
    script, folder, found = Path(__file__).with_name("vocabulary_ppo_ranks.py"), tmp_path_factory.mktemp("ppo"), {}

    def of(stage: str, processes: int) -> dict[str, Any]:
        out = folder / f"{stage}.json"
        if stage not in found:
            run_ranks(script, [str(out), stage], processes=processes)
            found[stage] = json.loads(out.read_text())[f"ppo/{stage}"]
        return found[stage]

    return of


def compared(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not name.startswith(PER_RUN)} for row in rows]


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_are_one(stage: str, ppo: Run, assert_close: Callable[..., None]) -> None:
    plain, shared = ppo("none", 1), ppo(stage, 2)
    assert shared["shown"] == plain["shown"] != [] and len(plain["rows"]) == 10
    assert_close(compared(shared["rows"]), compared(plain["rows"]), tolerance=TOLERANCE)


def test_there_was_something_to_compare(ppo: Run) -> None:
    rows, shown = ppo("none", 1)["rows"], ppo("none", 1)["shown"]
    assert abs(rows[-1]["kl"]) > 1e-4 and rows[0]["kl"] == 0 and rows[-1]["policy/steps"] > 0
    assert sum("word" in reply for reply in shown) > len(shown) / 2

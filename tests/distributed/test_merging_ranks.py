"""Adapters that are merged as a run goes on, in two processes under each ZeRO stage: as in one, alike to the bit."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

STAGES = {"few": ("1", "2"), "all": ("0", "1", "2", "3", "offload")}
HOW = ["few", pytest.param("all", marks=pytest.mark.slow)]
Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> Callable[[str, int], Found]:
    @cache
    def run(how: str, processes: int) -> Found:
        out = tmp_path_factory.mktemp("merging") / "found.json"
        stages = STAGES[how] if processes > 1 else ("none",)
        run_ranks(Path(__file__).with_name("merging_ranks.py"), [str(out), *stages], processes=processes)
        return json.loads(out.read_text())

    return run


@pytest.mark.parametrize("how", HOW)
def test_two_processes_are_one_and_their_weights_are_alike_to_the_bit(
    how: str, found: Callable[[str, int], Found]
) -> None:
    one, two = found(how, 1)["none"], found(how, 2)
    assert len(one) == 10 and one[-1] != one[1]
    for stage in STAGES[how]:
        assert two[stage] == pytest.approx(one, rel=1e-4), stage
        first, second = two[f"digests/{stage}"]
        assert first == second, stage


@pytest.mark.parametrize("how", HOW)
def test_a_merge_changes_nothing_of_what_the_model_computes(how: str, found: Callable[[str, int], Found]) -> None:
    two = found(how, 2)
    for stage in STAGES[how]:
        assert len(two[f"moved/{stage}"]) == 5 and max(two[f"moved/{stage}"]) < 1e-6, stage


@pytest.mark.parametrize("how", HOW)
def test_a_run_goes_on_behind_a_merge_bit_for_bit_and_under_another_stage(
    how: str, found: Callable[[str, int], Found]
) -> None:
    two = found(how, 2)
    for before, stage in zip(("", *STAGES[how]), STAGES[how], strict=False):
        assert two[f"resumed/{stage}"] == two[stage][6:] and two[f"is resumed/{stage}"] == [True, True], stage
        if before:
            assert two[f"cut anew/{stage}"] == pytest.approx(two[stage][6:], rel=1e-5), (before, stage)

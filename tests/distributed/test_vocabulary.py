"""131,072 pieces: one process == two == ZeRO 0 == 1 == 2 == 3, and the head is whole once, whatever a rank's tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STAGES = ("0", "1", "2", "3")
REWARDS = ("reward", "reward_regression", "reward_process")
METHODS = ("sft", *REWARDS, "dpo", "orpo", "simpo", "cpo", "kto", "lora")
ON_HEAD = "lora on the head"  # under stage 3 alone, where an adapter's weights are sharded too
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> list[dict[str, Any]]:
    """Of one process without ZeRO, and of two under each stage."""
    script, folder = Path(__file__).with_name("vocabulary_ranks.py"), tmp_path_factory.mktemp("vocabulary")
    run_ranks(script, [str(folder / "1.json"), "none"], processes=1)
    run_ranks(script, [str(folder / "2.json"), *STAGES], processes=2, timeout_s=1200)
    return [json.loads((folder / f"{processes}.json").read_text()) for processes in (1, 2)]


@pytest.mark.parametrize(
    ("method", "stage"), [(method, stage) for method in METHODS for stage in STAGES] + [(ON_HEAD, "3")]
)
def test_two_processes_are_one(method: str, stage: str, found: list[dict[str, Any]]) -> None:
    plain, shared = found[0][f"{method}/none"], found[1][f"{method}/{stage}"]
    assert len(plain["loss"]) == 10 and plain["loss"][-1] != plain["loss"][0]
    assert shared["loss"] == pytest.approx(plain["loss"], rel=TOLERANCE, abs=TOLERANCE)
    assert shared["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4, abs=TOLERANCE)
    assert shared["eval"] == pytest.approx(plain["eval"], rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize(("method", "parts"), [("sft", 1), (ON_HEAD, 3)])
def test_all_ranks_gather_the_same_weights_and_the_head_once_a_pass(
    method: str, parts: int, found: list[dict[str, Any]]
) -> None:
    """Under ZeRO 3, of modules that run forward and backward in one step."""
    first, second = found[1][f"gathers/{method}"]
    assert first["chunks"] != second["chunks"] and first["micro-batches"] == second["micro-batches"]
    assert max(first["chunks"], second["chunks"]) > 2 * first["micro-batches"]
    assert first["gathers"] == second["gathers"]
    for way in ("forward", "backward"):
        of_head = [gather for gather in first["gathers"] if gather.startswith(f"{way} hf.lm_head")]
        assert len(of_head) == parts * first["micro-batches"]

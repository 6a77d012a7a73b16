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
SLOW = dict.fromkeys(("reward_regression", "reward_process", "orpo", "simpo", "cpo"), ("1", "2"))  # another loss
CASES = [(method, stage) for stage in STAGES for method in METHODS] + [(ON_HEAD, "3")]
FIRST = [(method, stage) for method, stage in CASES if stage not in SLOW.get(method, ())]
TOLERANCE = 1e-5
Found = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> Callable[..., Found]:
    """What is found of cases, method and stage, in so many processes."""
    folder = tmp_path_factory.mktemp("vocabulary")

    def call(name: str, cases: list[tuple[str, str]], processes: int) -> Found:
        out, words = folder / f"{name}.json", ["/".join(case) for case in cases]
        script = Path(__file__).with_name("vocabulary_ranks.py")
        run_ranks(script, [str(out), *words], processes=processes, timeout_s=1200)
        return json.loads(out.read_text())

    return call


@pytest.fixture(scope="module")
def one(run: Callable[..., Found]) -> Found:
    return run("one", [(method, "none") for method in (*METHODS, ON_HEAD)], 1)


@pytest.fixture(scope="module")
def two(run: Callable[..., Found]) -> Found:
    return run("two", FIRST, 2)


@pytest.fixture(scope="module")
def rest(run: Callable[..., Found]) -> Found:
    return run("rest", [case for case in CASES if case not in FIRST], 2)


@pytest.fixture
def shared(method: str, stage: str, request: pytest.FixtureRequest) -> Found:
    """Of a method under a stage, in two processes."""
    return request.getfixturevalue("two" if (method, stage) in FIRST else "rest")[f"{method}/{stage}"]


@pytest.mark.parametrize(
    ("method", "stage"), [pytest.param(*case, marks=[] if case in FIRST else pytest.mark.slow) for case in CASES]
)
def test_two_processes_are_one(method: str, stage: str, one: Found, shared: Found) -> None:
    plain = one[f"{method}/none"]
    assert len(plain["loss"]) == 10 and plain["loss"][-1] != plain["loss"][0]
    assert shared["loss"] == pytest.approx(plain["loss"], rel=TOLERANCE, abs=TOLERANCE)
    assert shared["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4, abs=TOLERANCE)
    assert shared["eval"] == pytest.approx(plain["eval"], rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize(("method", "parts"), [("sft", 1), (ON_HEAD, 3)])
def test_all_ranks_gather_the_same_weights_and_the_head_once_a_pass(method: str, parts: int, two: Found) -> None:
    """Under ZeRO 3, of modules that run forward and backward in one step."""
    first, second = two[f"gathers/{method}"]
    assert first["chunks"] != second["chunks"] and first["micro-batches"] == second["micro-batches"]
    assert max(first["chunks"], second["chunks"]) > 2 * first["micro-batches"]
    assert first["gathers"] == second["gathers"]
    for way in ("forward", "backward"):
        of_head = [gather for gather in first["gathers"] if gather.startswith(f"{way} hf.lm_head")]
        assert len(of_head) == parts * first["micro-batches"]

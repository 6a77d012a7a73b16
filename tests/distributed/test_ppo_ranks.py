"""Iterations of PPO, its kin and online DPO, rejection sampling and an evaluation are the same in one process, in two,
and under each ZeRO stage.

Four roles: actor and critic in engines of their own, reference and reward frozen, whole or (ZeRO 3) sharded, and
replies from a model that is whole for them or never.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

STAGES = ("0", "1", "2", "3", "3, by layer")
TEN = dict.fromkeys(("ppo", "grpo", "online_dpo"), 10)
FOUR = dict.fromkeys(("shared", "shared_packed", "grpo_white", "dr_grpo", "gspo", "rloo", "reinforce_pp"), 4)
FOUR["online_aot"] = 4
ROWS = {**TEN, **FOUR, "rejection": 1}
TASKS = (*ROWS, "evaluate")
LEFT_OUT = {  # the stages that a task is not run under, for it adds nothing
    "shared_packed": ("0", "1", "2"),
    **dict.fromkeys(("rloo", "reinforce_pp"), ("3, by layer",)),
    **dict.fromkeys(("grpo_white", "dr_grpo", "gspo", "online_aot"), ("0", "1", "2", "3, by layer")),
}
SLOW = {  # those under which an engine does for it what it does for PPO and GRPO
    **dict.fromkeys(("rloo", "reinforce_pp", "grpo", "online_dpo"), ("1", "2")),
    "shared": ("1", "3", "3, by layer"),
    "shared_packed": ("3", "3, by layer"),
}
CASES = [(task, stage) for stage in STAGES for task in TASKS if stage not in LEFT_OUT.get(task, ())]
FIRST = [(task, stage) for task, stage in CASES if stage not in SLOW.get(task, ())]
TRAINED = [
    pytest.param(*case, marks=[] if case in FIRST else pytest.mark.slow) for case in CASES if case[0] in (*TEN, *FOUR)
]
SAVED = {
    "ppo": ("model/model", "best/model", "model_ema/model"),
    **dict.fromkeys(("shared", "shared_packed"), ("model/adapter/adapter_model",)),
}
TOLERANCE = 1e-5
LIVE = "generation/live_fraction"


Run = Callable[[str, list[tuple[str, str]], int], dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ppo")


@pytest.fixture(scope="module")
def run(folder: Path, run_ranks: Callable[..., None]) -> Run:
    """What is found of cases, task and stage, in so many processes."""

    def call(name: str, cases: list[tuple[str, str]], processes: int) -> dict[str, Any]:
        out, words = folder / f"{name}.json", ["/".join(case) for case in cases]
        run_ranks(Path(__file__).with_name("ppo_ranks.py"), [str(out), *words], processes=processes)
        return json.loads(out.read_text())

    return call


@pytest.fixture(scope="module")
def one(run: Run) -> dict[str, Any]:
    return run("one", [(task, "none") for task in TASKS], 1)


@pytest.fixture(scope="module")
def two(one: dict[str, Any], run: Run) -> dict[str, Any]:  # evaluates what one has made
    return run("two", FIRST, 2)


@pytest.fixture(scope="module")
def rest(run: Run) -> dict[str, Any]:
    return run("rest", [case for case in CASES if case not in FIRST], 2)


@pytest.fixture(scope="module")
def results(folder: Path, one: dict[str, Any], two: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    return folder, one | two


@pytest.fixture
def pair(
    task: str, stage: str, one: dict[str, Any], request: pytest.FixtureRequest
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one process finds of the task, and two under the stage."""
    found = request.getfixturevalue("two" if (task, stage) in FIRST else "rest")
    return one[f"{task}/none"], found[f"{task}/{stage}"]


def comparable(row: dict[str, float]) -> dict[str, float]:
    """Time and padding are not the same on any number of processes."""
    return {name: value for name, value in row.items() if not name.startswith("time/") and name != LIVE}


@pytest.mark.parametrize(("task", "stage"), [*TRAINED, *(("rejection", stage) for stage in STAGES)])
def test_two_processes_are_one(task: str, stage: str, pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    plain, shared = pair
    assert shared["shown"] == plain["shown"] != []
    assert len(shared["rows"]) == len(plain["rows"]) == ROWS[task]
    for mine, theirs in zip(shared["rows"], plain["rows"], strict=True):
        assert comparable(mine) == pytest.approx(comparable(theirs), rel=TOLERANCE, abs=TOLERANCE)


def test_each_task_was_run_under_its_stages(results: tuple[Path, dict[str, Any]]) -> None:
    stages = {task: {"none", *STAGES} - {*LEFT_OUT.get(task, ()), *SLOW.get(task, ())} for task in TASKS}
    assert set(results[1]) == {f"{task}/{stage}" for task, names in stages.items() for stage in names}


@pytest.mark.parametrize(("task", "stage"), TRAINED)
@pytest.mark.usefixtures("pair")
def test_they_save_the_same_model(task: str, stage: str, folder: Path) -> None:
    for name in SAVED.get(task, ("model/model",)):
        plain, shared = (
            load_file(folder / f"{task}-{which}" / f"{name}.safetensors") for which in ("none-1", f"{stage}-2")
        )
        assert plain.keys() == shared.keys()
        assert all(torch.allclose(plain[key], shared[key], atol=1e-4) for key in plain)


def test_the_run_learned_something_to_compare(results: tuple[Path, dict[str, Any]]) -> None:
    rows = results[1]["ppo/none"]["rows"]
    assert rows[0]["policy/steps"] == 0 and rows[-1]["policy/steps"] == 4
    assert abs(rows[-1]["kl"]) > 1e-3 and rows[-1]["kl/weight"] != rows[0]["kl/weight"]
    assert {"ptx/loss", "eval/reward", "gold", "reward/model"} <= {name for row in rows for name in row}
    last, average = (
        load_file(results[0] / "ppo-none-1" / f"{name}/model.safetensors") for name in ("model", "model_ema")
    )
    assert all((last[key] - average[key]).abs().max() > 1e-4 for key in last)
    rows = results[1]["grpo/none"]["rows"]
    assert not any(name.startswith("value/") for row in rows for name in row) and rows[0]["kl"] == 0
    assert rows[-1]["kl/loss"] > 1e-4 and all(row["grad_norm"] > 0 and row["groups/alike"] < 1 for row in rows)
    assert max(row["groups/redrawn"] for row in rows) > 0
    rows = results[1]["online_dpo/none"]["rows"]
    assert (
        all(0 < row["pairs"] <= 3 for row in rows)
        and abs(rows[-1]["rewards/margin"]) > 1e-3 > rows[0]["rewards/margin"] == 0
    )
    for name in ("shared", "shared_packed"):
        first, last = (results[1][f"{name}/none"]["rows"][at] for at in (0, -1))
        assert first["kl"] == 0 and abs(last["kl"]) > 1e-4 and abs(last["value/mean"] - first["value/mean"]) > 1e-3


def test_rejection_writes_the_same_rows(results: tuple[Path, dict[str, Any]]) -> None:
    written = {
        run: (results[0] / run / "selected.jsonl").read_text()
        for run in ("rejection-none-1", *(f"rejection-{stage}-2" for stage in STAGES))
    }
    assert len(set(written.values())) == 1 and written["rejection-none-1"]


@pytest.mark.parametrize("stage", STAGES)
def test_an_evaluation_finds_the_same(
    stage: str, results: tuple[Path, dict[str, Any]], assert_close: Callable[..., None]
) -> None:
    """Gold, reward and KL of every reply, best of n, the reward model's accuracy; every figure of the summary."""
    assert_close(results[1][f"evaluate/{stage}"], results[1]["evaluate/none"], tolerance=1e-6)


def test_the_evaluation_had_something_to_find(results: tuple[Path, dict[str, Any]]) -> None:
    found = results[1]["evaluate/none"]
    methods = {row["name"]: row for row in found["summary"]["methods"]}
    assert list(methods) == ["best", "last", "first", "best of 3"] and len(found["shown"]) == 4 * 7
    assert methods["first"]["kl"]["mean"] == 0 and abs(methods["last"]["kl"]["mean"]) > 1e-2
    assert methods["best of 3"]["reward"]["mean"] > methods["first"]["reward"]["mean"]
    assert len({json.dumps([row["reply"] for row in found["shown"] if row["method"] == name]) for name in methods}) > 2
    assert found["summary"]["reward_model"]["accuracy"]["mean"] > 0
    assert all(abs(row["gold"]) + abs(row["score"]) > 0 for row in found["shown"])

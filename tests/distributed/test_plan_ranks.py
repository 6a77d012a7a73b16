"""What a plan says that each process holds, against the tensors of DeepSpeed's engine in two of them."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import measured_runs
import pytest

from alignment.models.counted import Role, Rows
from alignment.models.footprint import counted_of
from alignment.models.held import held_of
from alignment.plan.buffers import buckets

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def ranks() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        return importlib.import_module("plan_ranks")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> dict[str, Any]:
    return counted(tmp_path_factory.mktemp("plan"), run_ranks, "sft", *map(str, STAGES))


def counted(folder: Path, run_ranks: Callable[..., None], *wanted: str) -> dict[str, Any]:
    row = json.dumps({"prompt": "a", "completion": " ".join(["the cow says moo"] * 200)})
    (folder / "rows.jsonl").write_text(f"{row}\n" * 16)
    run_ranks(Path(__file__).with_name("plan_ranks.py"), [str(folder / "found.json"), *wanted], processes=2)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_a_process_holds_what_is_planned(stage: int, found: dict[str, Any], ranks: ModuleType, tmp_path: Path) -> None:
    config = ranks.distributed(stage, tmp_path)
    role = Role("model.init", ranks.MODEL, is_trained=True)
    counted = counted_of(role, Rows(8, 16), ranks.DTYPE, ranks.LAYOUT)
    held, own = held_of(counted.trained, counted.frozen, config, 2, is_gpu=False), found[str(stage)]
    assert own["weights"] == pytest.approx(held.weights, rel=0.01)  # all but what makes shares even
    assert own["moments"] == pytest.approx(held.moments, rel=0.01)
    assert own["masters"] == pytest.approx(held.masters, rel=0.01) or stage == 0
    bucket = buckets(config, counted)
    planned = held.on_device + bucket  # while the pass runs; under stage 1 the last one ends with its own share of sums
    assert own["backward"] == pytest.approx(held.between_steps + held.masters if stage == 1 else planned, rel=0.03)
    assert own["step"] == pytest.approx(held.between_steps + (bucket if stage == 3 else 0), rel=0.01)


def test_what_is_planned_differs_by_the_stage(ranks: ModuleType, tmp_path: Path) -> None:
    """Of weights of P bytes in two processes, at the end of a backward pass, and between steps."""
    sums = []
    for stage in STAGES:
        config = ranks.distributed(stage, tmp_path)
        held = held_of(1.0, 0.0, config, 2, is_gpu=False)
        sums.append((held.on_device, held.between_steps))
    assert sums == [(4, 3), (2 + 1.5, 1 + 1.5), (1 + 0.5 + 1.5, 1 + 1.5), (2.5, 2.5)]


def test_what_zero_3_gathers_is_planned(found: dict[str, Any]) -> None:
    """Small weights stay whole, and what comes in one message is there twice for a while."""
    assert 0.97 < found["sft"]["ratio"] < 1.1


@pytest.mark.slow
def test_of_rows_that_processes_share_a_part_is_planned(run_ranks: Callable[..., None], tmp_path: Path) -> None:
    """And what they send each other for attention; in processes of their own, where DeepSpeed has not been."""
    assert 0.97 < counted(tmp_path, run_ranks, "sft shared")["sft shared"]["ratio"] < 1.1


@pytest.mark.slow
def test_a_policy_that_draws_is_whole_in_bfloat16(run_ranks: Callable[..., None], tmp_path: Path) -> None:
    found = counted(tmp_path, run_ranks, "grpo")["grpo"]
    assert found["highest"] == "drawing replies" and 0.97 < found["ratio"] < 1.1


def planned_and_alive(words: list[str], run_ranks: Callable[..., None], folder: Path) -> dict[str, Any]:
    """Of one of two processes that run so, beside what `write_inputs` has written into the folder we are in."""
    out = folder / "found.json"
    run_ranks(Path(measured_runs.__file__), [str(out), *words, "launch.processes=2"], processes=2)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


FEW = ["data.max_length=32", "data.max_prompt_length=16", "batch.max_tokens=64"]  # one pair


@pytest.mark.parametrize(
    ("stage", "pairs"),
    [
        pytest.param(stage, pairs, marks=() if (stage, pairs) == (2, 8) else pytest.mark.slow)
        for stage in STAGES
        for pairs in (2, 8)
    ],
)
def test_shares_of_gradients_are_planned(
    stage: int, pairs: int, run_ranks: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where weights are more than what is between them, sent in many buckets as those of a large model are: of a step
    of one pass and of several, in which ZeRO 2 has a share of the sum and one of what is added to it. ZeRO 0 sends all
    of them at once."""
    monkeypatch.chdir(tmp_path)
    settings = {"zero_optimization": {"reduce_bucket_size": 100_000}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    words = [*measured_runs.FULL["DPO"], "model.path=base", f"batch.size={pairs}", f"distributed.zero={stage}", *FEW]
    measured_runs.write_inputs({"DPO": words})
    words.append(f"distributed.deepspeed_config={tmp_path / 'settings.json'}")
    found = planned_and_alive(words, run_ranks, tmp_path)
    assert 0.97 < found["planned"] / found["alive"] < 1.1, found


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=() if stage == 1 else pytest.mark.slow) for stage in STAGES]
)
def test_of_a_step_of_one_pass_buckets_come_with_its_first_gradient(
    stage: int, run_ranks: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ZeRO 1 and 2; the most is there before, where logits are read out. Each process has half of the rows, of
    which a pass has room for many more."""
    monkeypatch.chdir(tmp_path)
    words = [*measured_runs.FULL["SFT"], "batch.size=16", "batch.max_tokens=8192", f"distributed.zero={stage}"]
    measured_runs.write_inputs({"SFT": words})
    found = planned_and_alive(measured_runs.checkpointing(words, is_on=True), run_ranks, tmp_path)
    assert 0.97 < found["planned"] / found["alive"] < 1.04, found


UPDATED = ["train.optimizer=adamw_bf16"]  # which has all of a process's share as one weight under ZeRO
WHOLE = [measured_runs.LORA, "model.lora.modules_to_save=[embed_tokens,lm_head]"]
"""Which ZeRO 1 and 2 lay in one tensor, of which each weight is copied to be saved."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "stage"), [*((UPDATED, stage) for stage in STAGES), *((WHOLE, stage) for stage in (0, 1, 2))]
)
def test_what_an_update_and_what_saving_makes_is_planned(
    own: list[str], stage: int, run_ranks: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*measured_runs.FULL["SFT"], "model.path=base", *own, "batch.size=2", "batch.max_tokens=128"]
    measured_runs.write_inputs({"SFT": words})
    words = [*measured_runs.checkpointing(words, is_on=True), f"distributed.zero={stage}"]
    found = planned_and_alive(words, run_ranks, tmp_path)
    assert 0.97 < found["planned"] / found["alive"] < 1.1, found


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", measured_runs.IN_TWO)
def test_what_one_of_two_processes_takes_is_planned(
    name: str, stage: int, run_ranks: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whole runs, those of the table in recipes/memory.md."""
    if not measured_runs.is_here(measured_runs.IN_TWO[name]):
        pytest.skip("no pretrained model: bash scripts/real_model.sh makes it")
    monkeypatch.chdir(tmp_path)
    measured_runs.write_inputs({name: measured_runs.IN_TWO[name]})
    found = planned_and_alive([*measured_runs.IN_TWO[name], f"distributed.zero={stage}"], run_ranks, tmp_path)
    assert 0.97 < found["planned"] / found["alive"] < 1.1, found

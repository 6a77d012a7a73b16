"""Iterative DPO that is killed at any moment, in a round or between two, and run again, ends as if it had not been."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kill.conftest import Whole

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny_iterative_dpo.yaml"
WORDS = ["run", "rounds.yaml", "output_dir=out"]
TRAIN = {"train.max_steps": 4, "train.eval_every": 2, "checkpoint.every": 1, "log.every": 1, "batch.size": 4}
REPLIES = {"log.samples": 4, "generation.max_new_tokens": 8, "generation.stop": ["a", "e"]}
SMALL: dict[str, dict[str, Any]] = {
    "tiny_sft": {
        **{"model.init.hidden_size": 32, "model.init.intermediate_size": 48},
        **{"data.train.limit": 24, "data.eval.limit": 4, **TRAIN},
    },
    "tiny_rejection": {"data.train.limit": 16, "num_samples": 3, "reward.function": "judge.shorter", **REPLIES},
    "tiny_dpo": {"reference.cache": False, **TRAIN},
    "tiny_evaluate": {"data.eval.limit": 3, **REPLIES},
}


def write_recipe(folder: Path) -> None:
    """The shipped recipe, its stages in their order and all that they are told, but small."""
    folder.mkdir()
    recipe = yaml.safe_load(RECIPE.read_text())
    for stage in recipe["stages"]:
        own = {"log.progress": False, **SMALL[stage["recipe"]]}
        stage["set"] = {**stage.get("set", {}), **own}
    (folder / "rounds.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="module")
def unbroken(runner: Any, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("rounds") / "whole"
    write_recipe(folder)
    start = time.perf_counter()
    ended = runner(WORDS, folder)
    assert ended.code == 0, ended.said
    return Whole(folder / "out", ended.touches, time.perf_counter() - start)


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 21))])
def test_killed_twice_and_run_again(
    number: int, runner: Any, unbroken: Whole, assert_same: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """Once at a random touch of a file, number 0 in the middle, and once at a random time: each stage has made what
    the unbroken one's has."""
    drawn, folder = random.Random(f"rounds {number}"), tmp_path / "run"
    write_recipe(folder)
    quarter = unbroken.touches // 4
    at = drawn.randint(quarter, 3 * quarter) if number == 0 else drawn.randint(1, unbroken.touches)
    first = runner(WORDS, folder, at=at)
    assert first.code == -signal.SIGKILL
    second = runner(WORDS, folder, after_s=drawn.uniform(0.1, 0.9) * unbroken.seconds)
    assert second.code in (0, -signal.SIGKILL), second.said
    last = runner(WORDS, folder)
    assert last.code == 0, last.said
    for stage in ("sft", "dpo_1", "dpo_2"):
        assert_same(folder / "out" / stage, unbroken.folder / stage)
    for stage in ("draw_1", "draw_2"):
        for name in ("selected.jsonl", "samples.jsonl", "metrics.jsonl"):
            assert (folder / "out" / stage / name).read_bytes() == (unbroken.folder / stage / name).read_bytes(), name
    for name in ("samples.jsonl", "summary.json"):
        path = Path("evaluate") / name
        assert (folder / "out" / path).read_bytes() == (unbroken.folder / path).read_bytes(), name


def test_the_rounds_had_something_to_learn(unbroken: Whole) -> None:
    """Each round's pairs are of its own policy, and there are enough that some are learned from twice or never."""
    first, second = ((unbroken.folder / f"draw_{n}" / "selected.jsonl").read_text().splitlines() for n in (1, 2))
    assert min(len(first), len(second)) > 4 and first != second

"""The recipe that is run may lie in the folder of its own run, and no other file may."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alignment as package

SMALL = "train.max_steps: 1, data.train.limit: 8, data.eval.limit: null, batch.size: 4, train.eval_every: 0"
TEXTS = {
    "pipeline": f"""# One stage
defaults: [{{task: pipeline}}, _self_]
log: {{progress: false}}
stages:
  - {{name: sft, recipe: tiny_sft, set: {{{SMALL}, train.warmup_steps: 0}}}}
""",
    "run": """# A small SFT
defaults: [tiny_sft, _self_]
data: {train: {limit: 8}, eval: {limit: null}}
batch: {size: 4}
train: {max_steps: 1, warmup_steps: 0, eval_every: 0}
log: {progress: false}
""",
}
WAYS = {
    "run": ["run", "{}"],
    "sweep": ["run", "{}", "-m", "seed=1"],
    "check": ["check", "{}"],
    "submit": ["submit", "{}", "cluster=slurm", "--dry-run"],
    "processes": ["run", "{}", "launch.processes=2", "distributed.zero=1"],
}


@pytest.fixture(params=list(TEXTS))
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(TEXTS[request.param])
    return folder / "mine.yaml"


@pytest.mark.parametrize("way", WAYS)
def test_a_recipe_may_lie_in_its_own_output_dir(way: str, recipe: Path, alignment: Callable[..., Any]) -> None:
    text = recipe.read_text()
    words = [word.format(recipe) for word in WAYS[way]]
    ended = alignment(*words, f"output_dir={recipe.parent}")
    assert (ended.code, ended.err) == (0, [])
    assert recipe.read_text() == text
    if way == "run":
        assert alignment(*words, f"output_dir={recipe.parent}").code == 0  # again: it has nothing to do


@pytest.mark.parametrize("way", ["run", "sweep", "check", "submit"])
def test_no_other_file_may(way: str, recipe: Path, alignment: Callable[..., Any]) -> None:
    (recipe.parent / "other.yaml").write_text(recipe.read_text())
    ended = alignment(*(word.format(recipe) for word in WAYS[way]), f"output_dir={recipe.parent}")
    assert ended.code == 2 and len(ended.err) == 1 and "it holds 'other.yaml'; output_dir=" in ended.err[0], ended.err


def test_from_python_too(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recipe.parent)
    assert package.run(recipe, output_dir=".").folder == Path()

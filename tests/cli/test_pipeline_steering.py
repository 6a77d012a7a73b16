"""Pipelines: recipes by path, stages left out, what is checked before anything starts, and why a stage is run again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = "data.train.limit: 8, batch.size: 2, train.warmup_steps: 0, data.eval.limit: null, train.eval_every: 0"
PIPE = f"""# Two stages, the first by a recipe of one's own beside this file
defaults: [{{task: pipeline}}, _self_]
log: {{progress: false}}
stages:
  - {{name: first, recipe: parts/small.yaml, set: {{train.max_steps: 1}}}}
  - name: second
    recipe: tiny_dpo
    set: {{model.path: "@first/model", train.max_steps: 1, {SMALL}}}
"""
PART = """# A small SFT
defaults: [tiny_sft, _self_]
data: {train: {limit: 8}, eval: {limit: null}}
batch: {size: 2}
train: {warmup_steps: 0, eval_every: 0}
model: {init: {hidden_size: 32, intermediate_size: 48}}
"""


@pytest.fixture
def pipe(own: Callable[..., str], tmp_path: Path) -> str:
    recipe = own("pipe", PIPE)
    (tmp_path / "own" / "parts").mkdir()
    (tmp_path / "own" / "parts" / "small.yaml").write_text(PART)
    return recipe


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_s_recipe_may_be_a_file_and_its_folder_is_a_recipe_again(
    pipe: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    ended = alignment("run", pipe, "output_dir=out")
    assert (ended.code, ended.err) == (0, [])
    assert steps(tmp_path / "out" / "first") == [1] and steps(tmp_path / "out" / "second") == [1]
    again = alignment("run", "out/config.yaml")
    assert again.code == 0 and again.out.count("unchanged, skipped") == 2
    # divided up in another way, it is the same work
    again = alignment("run", pipe, "output_dir=out", "distributed.zero=2", "launch.processes=2")
    assert again.code == 0 and again.out.count("unchanged, skipped") == 2
    again = alignment("run", pipe, "output_dir=out", "stages.second.set.loss.beta=0.7")
    assert again.code == 0 and again.out.count("unchanged, skipped") == 1
    said = "changed since it was run (loss.beta was 0.3 and is 0.7); the old one is kept in out/second.old-1"
    assert said in again.out.splitlines()


def test_stages_are_left_out_where_what_they_made_is_there(
    pipe: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    said = "stage second: it reads @first, a stage that is left out and has no finished run in 'out/first'"
    for word in ("only=[second]", "stages.first.enabled=false"):
        ended = alignment("run", pipe, "output_dir=out", word)
        assert (ended.code, ended.err) == (2, [f"alignment: pipe: {said}: run that one first, or with it"])
    assert not (tmp_path / "out").exists()
    assert alignment("run", pipe, "output_dir=out", "only=[first]").code == 0
    assert not (tmp_path / "out" / "second").exists()
    ended = alignment("run", pipe, "output_dir=out", "stages.first.enabled=false")
    assert ended.code == 0 and "1/1 second" in ended.out and steps(tmp_path / "out" / "second") == [1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["only=[secnd]"], "only must name stages, of first, second, got ['secnd']"),
        (
            ["stages.first.enabled=false", "stages.second.enabled=false"],
            "a stage must be left on, of first, second (stages.NAME.enabled, only), got null",
        ),
        (["stages.second.recipe=tiny_dop"], "stage second: no recipe 'tiny_dop' (did you mean 'tiny_dpo'?)"),
        (["stages.second.set.loss.betta=1"], "stage second: no such key 'loss.betta' (did you mean 'loss.beta'?)"),
    ],
)
@pytest.mark.parametrize("how", [[], ["--cfg", "job"]])
def test_a_mistake_in_a_stage_is_told_with_its_name(
    words: list[str], message: str, how: list[str], pipe: str, alignment: Callable[..., Any]
) -> None:
    ended = alignment("run", pipe, "output_dir=out", *words, *how)
    assert (ended.code, ended.err, ended.out) == (2, [f"alignment: pipe: {message}"], "")


def test_no_such_file_is_told_with_where_it_was_looked_for(
    pipe: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "own" / "parts" / "small.yaml").unlink()
    ended = alignment("run", pipe, "output_dir=out")
    said = f"stage first: no recipe file 'parts/small.yaml', looked for in {tmp_path}/own/parts and parts"
    assert (ended.code, ended.err) == (2, [f"alignment: pipe: {said}"])


def test_all_stages_of_all_jobs_are_checked_before_a_sweep_starts(
    pipe: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    ended = alignment("run", pipe, "-m", "output_dir=out", "stages.second.set.train.max_steps=1,-1")
    said = "job 1: stage second: train.max_steps must be"
    assert ended.code == 2 and ended.err[0].startswith(f"alignment: pipe: {said}") and len(ended.err) == 1
    assert not (tmp_path / "out").exists()


def test_a_sweep_over_a_stage_speaks_as_its_user(pipe: str, alignment: Callable[..., Any]) -> None:
    ended = alignment("run", pipe, "-m", "output_dir=out", "stages.second.set.loss.beta=0.2,0.4")
    assert ended.code == 0
    jobs = [line for line in ended.out.splitlines() if "#" in line and "HYDRA" in line]
    assert [line.endswith(f"stages.second.set.loss.beta={beta}") for line, beta in zip(jobs, (0.2, 0.4), strict=True)]
    assert "+stages" not in ended.out

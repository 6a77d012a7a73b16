"""Keys of a pipeline's stages on the command line: by the stage's name, and as its recipe's keys are written."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from alignment.cli.compose import composing, swept


def stage_set(printed: str, number: int) -> dict[str, Any]:
    return dict(yaml.safe_load(printed)["stages"][number]["set"])


@pytest.mark.parametrize(
    ("word", "number", "key", "value"),
    [
        ("stages.dpo_1.set.train.learning_rate=1e-5", 2, "train.learning_rate", 1e-5),  # a key that it lacks
        ("+stages.dpo_1.set.train.learning_rate=1e-5", 2, "train.learning_rate", 1e-5),
        ("stages.draw_1.set.data.train.limit=32", 1, "data.train.limit", 32),  # one that it has
        ("stages.1.set.data.train.limit=32", 1, "data.train.limit", 32),
        ("stages.draw_1.set.num_samples=3", 1, "num_samples", 3),
        ("stages.draw_1.set.generation.stop=[a,'b,c']", 1, "generation.stop", ["a", "b,c"]),
        ("stages.dpo_1.set.model.path='a b,c'", 2, "model.path", "a b,c"),
        ("stages.dpo_1.set.model.path=", 2, "model.path", ""),
        ("stages.dpo_1.set.data.train.limit=null", 2, "data.train.limit", None),
    ],
)
def test_a_key_of_a_stage_is_set_once(
    word: str, number: int, key: str, value: object, alignment: Callable[..., Any]
) -> None:
    before = stage_set(alignment("run", "tiny_iterative_dpo", "--cfg", "job").out, number)
    ended = alignment("run", "tiny_iterative_dpo", word, "--cfg", "job")
    assert (ended.code, ended.err) == (0, [])
    assert stage_set(ended.out, number) == {**before, key: value}


def test_what_comes_later_has_the_last_word(alignment: Callable[..., Any]) -> None:
    """The recipe has `train: {max_steps: 40}`."""
    words = ["data.train.limit=8", "generation.max_new_tokens=4", "num_samples=2"]
    small = [f"stages.draw_1.set.{word}" for word in words]
    sft = [f"stages.sft.set.{word}" for word in ("train.max_steps=1", "data.train.limit=8", "batch.size=2")]
    ended = alignment(
        "run", "tiny_iterative_dpo", *sft, *small, "stages.dpo_1.set.train.max_steps=-1", "output_dir=out"
    )
    said = "alignment: tiny_iterative_dpo: stage dpo_1: train.max_steps must be >= 0, got -1"
    assert (ended.code, ended.err) == (2, [said])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "stages.dop_1.set.seed=1",
            "stages must be one of sft, draw_1, dpo_1, draw_2, dpo_2, evaluate, got 'dop_1' (did you mean 'dpo_1'?)",
        ),
        ("stages.6.set.seed=1", "stages must be one of sft, draw_1, dpo_1, draw_2, dpo_2, evaluate, got '6'"),
        ("log.trackers.x=1", "a list's entries have numbers, as in log.trackers.0, got 'x'"),
    ],
)
def test_no_such_stage(word: str, message: str, alignment: Callable[..., Any]) -> None:
    ended = alignment("run", "tiny_iterative_dpo", word)
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_iterative_dpo: {message}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train.max_steps=4"],
            "no such key 'train.max_steps' in a pipeline, whose stages have it: stages.NAME.set.train.max_steps=4,"
            " NAME one of sft, reward, dpo, orpo, ppo, rejection_sft",
        ),
        (
            ["-m", "max_steps=4,5"],
            "no such key 'max_steps' in a pipeline, whose stages have it: stages.NAME.set.train.max_steps=4,5,"
            " NAME one of sft, reward, dpo, orpo, ppo, rejection_sft",
        ),
        (
            ["reward.path=x"],
            "no such key 'reward.path' in a pipeline, whose stages have it: stages.NAME.set.reward.path=x,"
            " NAME one of ppo, rejection, evaluate",
        ),
        (["loss.beta=3"], "no such key 'loss.beta' (did you mean 'stages.dpo.set.loss.beta=3'?)"),
        (["sft.lr=1"], "no such key 'sft.lr' (did you mean 'stages.sft.set.train.learning_rate=1'?)"),
        (["stages.sft.seed=1", "seed=2"], "no such key 'stages.sft.seed' (did you mean 'stages.sft.set.seed=1'?)"),
        (["sed=1"], "no such key 'sed' (did you mean 'seed'?)"),
        (["stages.sft.enable=false"], "no such key 'stages[0].enable' (did you mean 'enabled'?)"),
        (
            ["bogus=1"],
            "no such key 'bogus' in a pipeline: its own are output_dir, seed, distributed, launch, log, cluster,"
            " commits, stages, only, inputs, a stage's stages.NAME.set.KEY=1, NAME one of sft, reward, dpo, orpo, ppo,"
            " rejection, rejection_sft, evaluate",
        ),
    ],
    ids=lambda each: each[-1] if isinstance(each, list) else "",
)
def test_a_stage_s_key_given_to_the_pipeline_is_answered_with_the_stage_s(
    words: list[str], message: str, alignment: Callable[..., Any]
) -> None:
    ended = alignment("run", "tiny_pipeline", *words)
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_pipeline: {message}"])


def test_help_of_a_pipeline_shows_its_stages_and_how_one_is_changed(alignment: Callable[..., Any]) -> None:
    shown = alignment("run", "tiny_pipeline", "--help", "stages.orpo.enabled=false").out
    lines = [line.split("#")[0].strip() for line in shown.splitlines()]
    for line in ("sft: tiny_sft", "orpo: tiny_orpo (left out)", "stages.ppo.set.train.max_steps=30"):
        assert line in lines
    assert "stages.sft.set.seed=1" in shown and "distributed=zero2" in shown
    assert "model=tiny" not in shown  # a preset of its stages, which the pipeline would refuse
    one = alignment("run", "tiny_pipeline", "--help", "stages.ppo").out
    assert "ppo: tiny_ppo" in one and "tiny_sft" not in one and "stages.ppo.set.train.max_steps=30" in one
    wrong = alignment("run", "tiny_pipeline", "--help", "stages.pop")
    assert wrong.code == 2 and wrong.err[0].endswith("got 'pop' (did you mean 'ppo'?)")


def test_a_task_without_stages_has_no_such_key(alignment: Callable[..., Any]) -> None:
    ended = alignment("run", "tiny_dpo", "stages.dpo_1.set.seed=1")
    assert ended.code == 2 and "no such key 'stages'" in ended.err[0]


def test_values_of_a_sweep_are_one_each() -> None:
    with composing([]):
        jobs = swept("tiny_iterative_dpo", ["stages.dpo_1.set.train.max_steps=1,2"])
    assert [job.stages[2].set["train.max_steps"] for job in jobs] == [1, 2]


def test_a_stage_says_what_it_is_for(alignment: Callable[..., Any], own: Callable[..., str]) -> None:
    few = "{train.max_steps: 1, data.train.limit: 8, batch.size: 4, data.eval.limit: null, train.eval_every: 0}"
    stage = f"  - {{name: sft, recipe: tiny_sft, about: The start of it, set: {few}}}\n"
    ended = alignment("run", own("mine", f"# Mine\ndefaults:\n  - task: pipeline\n  - _self_\nstages:\n{stage}"))
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[next(n for n, line in enumerate(lines) if "1/1 sft" in line) + 1] == "The start of it"

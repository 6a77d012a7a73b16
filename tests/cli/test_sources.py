"""Data of several sources, held-out rows and named sets through the command: what is said, logged, refused, resumed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from alignment.cli.source_lists import with_names
from alignment.config.metrics import FAMILIES, held_out
from alignment.config.sources import TAKEN
from alignment.training import supervised

SMALL = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "log.progress=false", "batch.size=4"]
NATIVE = ["data=native", "output_dir=out"]
MIX = ["data.train.mix.a={path: a.jsonl, weight: 3}", "data.train.mix.b={path: b.jsonl, weight: 1}"]
SETS = "data.eval.sets={x: {path: x.jsonl}, y: {path: y.jsonl}}"


@pytest.fixture
def files(tmp_path: Path) -> None:
    """a and b, 12 and 4 rows of 8 prompts; x and y, 3 and 5 rows of other prompts; all, those of both."""
    words = ["the", "cow", "eats", "grass", "and", "an", "owl", "can", "fly", "over", "it", "at", "night"]
    made: dict[str, list[dict[str, str]]] = {}
    for name, count in (("a", 12), ("b", 4), ("x", 3), ("y", 5)):
        made[name] = [
            {
                "prompt": f"{name} {words[n // 2]}",
                "chosen": " ".join(words[: n % 5 + 1]),
                "rejected": " ".join(words[n % 4 :]),
                "completion": " ".join(words[n % 5 :]),
            }
            for n in range(count)
        ]
    for name, rows in {**made, "all": made["x"] + made["y"]}.items():
        given = [{key: value for key, value in row.items() if key != "completion"} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        of_one = [{key: row[key] for key in ("prompt", "completion")} for row in rows]
        (tmp_path / f"{name}_sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_one))


@pytest.fixture
def run(
    alignment: Callable[..., Any], files: None, tmp_path: Path
) -> Callable[..., tuple[str, list[dict[str, float]]]]:
    """What a run said, and its rows without the time."""

    def call(recipe: str, *words: str, folder: str = "out") -> tuple[str, list[dict[str, float]]]:
        ended = alignment("run", recipe, *SMALL, *NATIVE, *words, f"output_dir={folder}")
        assert ended.code == 0, ended.err
        return ended.out, rows(tmp_path / folder)

    return call


def rows(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in found]


def test_each_source_of_a_list_has_a_name_of_its_own() -> None:
    """Also shards, whose files are called the same in each folder: none may take the place of another."""
    paths = ["x/part_0.jsonl", "y/part_0.jsonl", "z/part_0.jsonl", "part.jsonl", "u/part.jsonl", "part_0_2.jsonl"]
    recipe = OmegaConf.create({"data": {"train": paths}})
    with_names(recipe)
    assert {name: source.path for name, source in recipe.data.train.mix.items()} == {
        "part_0": "x/part_0.jsonl",
        "part_0_2": "y/part_0.jsonl",
        "part_0_3": "z/part_0.jsonl",
        "part": "part.jsonl",
        "part_2": "u/part.jsonl",
        "part_0_2_2": "part_0_2.jsonl",
    }


def test_the_name_of_a_set_is_told_from_a_metric_s_own() -> None:
    begins = {name.partition("/")[0] for name in FAMILIES}
    for name in {*begins, "helpful"} - {*TAKEN}:
        assert held_out(f"eval/{name}/loss") == (name, "loss")


def of_sft(*words: str) -> list[str]:
    return [word.replace(".jsonl", "_sft.jsonl") for word in words]


def test_a_mix_is_said_and_held_out_rows_have_their_sources_names(run: Callable[..., Any]) -> None:
    out, found = run("tiny_dpo", *MIX, "data.eval.fraction=0.4", "train.max_steps=4", "train.eval_every=2")
    assert "train: 16 rows (a 12, b 4)\n" in out
    assert "held out of the training rows (data.eval.fraction=0.4); " in out
    assert "75.0% of each step, " in out and "25.0% of each step, " in out
    names = {name.split("/")[1] for name in found[-1] if name.startswith("eval/") and name.endswith("/loss")}
    assert names <= {"a", "b", "loss"} and "loss" in names and len(names) > 1
    assert [row["epoch"] for row in found] == sorted(row["epoch"] for row in found)
    assert found[0]["epoch"] > 4 / 16, "over the rows that are left"


def test_named_sets_add_up_to_what_all_their_rows_give(run: Callable[..., Any]) -> None:
    """Means of tokens, divided once: not the mean of the sets' means."""
    data = ["train.max_steps=0", "data.train.path=a.jsonl"]
    said, (named,) = run("tiny_sft", *of_sft(*data, SETS), folder="named")
    _, (whole,) = run("tiny_sft", *of_sft(*data, "data.eval.path=all.jsonl"), folder="whole")
    for name, value in whole.items():
        assert named[name] == pytest.approx(value, rel=1e-6), name
    for measured in ("loss", "logps/token", "mean_token_accuracy", "perplexity"):
        sets = sorted(named[f"eval/{place}/{measured}"] for place in ("x", "y"))
        assert sets[0] <= named[f"eval/{measured}"] <= sets[1]
    assert named["eval/x/loss"] != named["eval/y/loss"]
    assert "eval of x at step 0: loss " in said and "eval of y at step 0: loss " in said


def test_the_best_model_may_be_that_of_one_set(run: Callable[..., Any]) -> None:
    words = ["train.best.metric=eval/y/loss", "train.max_steps=3", "train.eval_every=1"]
    out, found = run("tiny_dpo", "data.train.path=a.jsonl", SETS, *words)
    best = min(row["eval/y/loss"] for row in found)
    assert f"the best by eval/y/loss ({best:.4g})" in out


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of PPO that draws short replies, which the longer score the better, and takes no step."""
    (tmp_path / "judge_of_sets.py").write_text("def score(prompts, replies):\n    return [len(r) for r in replies]\n")
    monkeypatch.syspath_prepend(tmp_path)
    reward = ["reward.function=judge_of_sets.score", "gold=null"]
    return ["tiny_ppo", *MIX, *reward, "generation.max_new_tokens=6", "train.max_steps=0"]


def test_replies_to_held_out_prompts_are_judged_set_by_set(
    run: Callable[..., Any], judged: list[str], tmp_path: Path
) -> None:
    _, (row,) = run(*judged, SETS, "log.samples=8")
    assert row["eval/reward"] == pytest.approx((3 * row["eval/x/reward"] + 5 * row["eval/y/reward"]) / 8)
    assert row["eval/x/length"] <= 6 and "eval/x/moments/length" not in row
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 8
    assert not (tmp_path / "out" / "model").exists() and not (tmp_path / "out" / "model_ema").exists()


def test_distinct_ngrams_are_of_the_replies_of_all_sets_together(run: Callable[..., Any], judged: list[str]) -> None:
    """Two sets of the same prompts, and the likeliest replies to them: twice the n-grams, and no other ones."""
    twice = "data.eval.sets={x: {path: x.jsonl}, y: {path: x.jsonl}}"
    _, (row,) = run(*judged, twice, "generation.temperature=1e-6")
    for name in ("distinct_1", "distinct_2", "distinct_3"):
        assert row[f"eval/x/{name}"] == row[f"eval/y/{name}"] > 0
        assert row[f"eval/{name}"] == pytest.approx(row[f"eval/x/{name}"] / 2)


def test_an_evaluation_alone_is_that_before_the_first_step_and_leaves_no_model(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    data = ["data.train.path=a.jsonl", "data.eval.path=x.jsonl"]
    said, alone = run("tiny_dpo", *data, "train.max_steps=0", folder="alone")
    _, trained = run("tiny_dpo", *data, "train.max_steps=1", "train.eval_on_start=true", folder="trained")
    assert alone == trained[:1] and "eval at step 0: loss 0.6931" in said
    assert "nothing will be learned" not in said
    assert not (tmp_path / "alone" / "model").exists() and (tmp_path / "alone" / "finished.json").exists()
    again, _ = run("tiny_dpo", *data, "train.max_steps=0", folder="alone")
    assert "finished already" in again
    longer, found = run("tiny_dpo", *data, "train.max_steps=1", folder="alone")
    assert "goes on to train.max_steps=1, where 0 was asked before\n" in longer and found == trained


def test_a_mixed_run_that_was_killed_goes_on_to_the_same_bits(
    run: Callable[..., Any], alignment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [*MIX, "data.eval.fraction=0.4", "train.max_steps=6", "train.eval_every=2", "checkpoint.every=2"]
    run("tiny_dpo", *words, folder="whole")
    train_step, taken = supervised.train_step, []

    def killed(*arguments: Any) -> Any:
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(1)
        return train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "train_step", killed)
        assert alignment("run", "tiny_dpo", *SMALL, *NATIVE, *words, "output_dir=torn").code != 0
    assert len(taken) == 3
    run("tiny_dpo", *words, folder="torn")
    assert rows(tmp_path / "torn") == rows(tmp_path / "whole")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "torn")]
    assert weights[0] == weights[1]


def test_a_table_of_the_reference_lies_beside_the_first_source(run: Callable[..., Any], tmp_path: Path) -> None:
    run("tiny_dpo", *MIX, "data.eval.fraction=0.4", "train.max_steps=2")
    assert len(list((tmp_path / ".reference").iterdir())) == 2, "of the training rows, and of the held-out ones"


def test_prompts_that_training_and_evaluation_share_are_counted(run: Callable[..., Any]) -> None:
    out, _ = run("tiny_dpo", *MIX, "data.eval.path=b.jsonl", "train.max_steps=1")
    assert "WARNING: 2 of the 2 prompts of data.eval are in data.train too, which is learned from\n" in out
    out, _ = run("tiny_dpo", *MIX, "data.eval.path=x.jsonl", "train.max_steps=1", folder="apart")
    assert "prompts of data.eval are in" not in out


def test_sources_may_be_given_key_by_key(run: Callable[..., Any]) -> None:
    words = ["data.eval.path=x.jsonl", "train.max_steps=2"]
    whole, found = run("tiny_dpo", *MIX, *words)
    keys = [f"data.train.mix.{name}.{key}" for name in ("a", "b") for key in ("path", "weight")]
    given = [f"{key}={value}" for key, value in zip(keys, ["a.jsonl", 3, "b.jsonl", 1], strict=True)]
    out, same = run("tiny_dpo", *given, *words, folder="keys")
    assert same == found and "train: 16 rows (a 12, b 4)" in out and "train: 16 rows (a 12, b 4)" in whole


MISTAKES = {
    "some weights": (
        ["data.train.mix.a={path: a.jsonl, weight: 3}", "data.train.mix.b={path: b.jsonl}"],
        "data.train.mix must have a weight for each source, or for none (they count by their rows then, and by "
        "temperature), got {'a': 3.0, 'b': None}",
    ),
    "a temperature at which nothing but the largest counts": (
        ["data.train.mix={a: {path: a.jsonl}, b: {path: b.jsonl}}", "data.train.temperature=0.01"],
        "data.train.temperature must be >= 0.1 (inf, in YAML .inf: all sources alike), got 0.01",
    ),
    "weights and a temperature": (
        [*MIX, "data.train.temperature=2"],
        "data.train.temperature must be 1 without a mix, and in one that gives weights, got 2.0",
    ),
    "a weight of 0": (
        ["data.train.mix.a={path: a.jsonl, weight: 0}"],
        "data.train.mix.a.weight must be > 0 and finite (a source that is not to count is left out), got 0.0",
    ),
    "mix and path": (
        [*MIX, "data.train.path=a.jsonl"],
        "data.train.path must be unset where mix names the sources, each with its own, got 'a.jsonl'",
    ),
    "a source without a path": (["data.train.mix.a={weight: 1}"], "data.train.mix.a.path is required, got null"),
    "a missing file": (
        ["data.train.mix.a={path: gone.jsonl}"],
        "data.train.mix.a.path: no such file or folder, got 'gone.jsonl'",
    ),
    "a list": (
        ["data.train=[{path: a.jsonl}]"],
        "data.train must hold keys and values, {name: value}, got a list; several sources are "
        "data.train.mix={a: {path: ..., weight: 2}, b: {path: ..., weight: 1}}",
    ),
    "toy rows in a mix": (
        ["data.train.mix.a={path: a.jsonl, format: toy}"],
        "data.train.mix.a.format must be one of files, got 'toy'",
    ),
    "a set named as metrics": (
        ["data.train.path=a.jsonl", "data.eval.sets.rewards={path: x.jsonl}"],
        "data.eval.sets must have other names than metrics have (reward, rewards, logps, kl, length, moments, "
        "stderr, value, ptx, alarm, ranges, router), got "
        "'rewards'",
    ),
    "held out twice": (
        ["data.train.path=a.jsonl", "data.eval.path=x.jsonl", "data.eval.fraction=0.1"],
        "data.eval: at most one of path (of the toy task: limit), fraction and sets must be set, got "
        "{'path': 'x.jsonl', 'fraction': 0.1}",
    ),
    "nothing to evaluate": (
        ["data.train.path=a.jsonl", "train.max_steps=0"],
        "data.eval.path is required by train.max_steps=0, which evaluates on held-out rows, got null",
    ),
    "a best model of no steps": (
        ["data.train.path=a.jsonl", "data.eval.path=x.jsonl", "train.max_steps=0", "train.best.metric=eval/loss"],
        "train.best.metric must be null with train.max_steps=0, which leaves no model, got 'eval/loss'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line(mistake: str, alignment: Callable[..., Any], files: None) -> None:
    words, line = MISTAKES[mistake]
    ended = alignment("run", "tiny_dpo", *SMALL, *NATIVE, *words)
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_dpo: {line}"])


LISTED = """# mine
defaults:
  - task: dpo
  - model: tiny
  - data: native
  - distributed: cpu
  - _self_

data:
  train:
    - {path: a.jsonl, weight: 2}
    - {path: b.jsonl, weight: 1}
    - {path: a.jsonl, weight: 1, limit: 2}
  eval: [x.jsonl, y.jsonl]
train: {max_steps: 1}
"""


def test_a_list_of_sources_in_a_recipe_has_the_names_of_their_files(
    run: Callable[..., Any], own: Callable[[str, str], str]
) -> None:
    out, (row,) = run(own("mine", LISTED))
    assert "train: 18 rows (a 12, a_2 2, b 4)\n" in out and "data.train.mix.a: 12 rows, 50.0% of each step, " in out
    assert row["eval/x/loss"] and row["eval/y/loss"]


def test_a_list_elsewhere_is_answered_with_the_mapping(alignment: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "own" / "data").mkdir(parents=True)
    (tmp_path / "own" / "data" / "mine.yaml").write_text("# mine\ntrain: [{path: a.jsonl}]\n")
    ended = alignment("run", "tiny_dpo", "--config-dir", "own", "data=mine")
    assert ended.code == 2 and len(ended.err) == 1
    assert "must hold keys and values, got a list; several sources are data.train.mix={a: {path: " in ended.err[0]


@pytest.mark.parametrize(
    ("recipe", "words", "line"),
    [
        (
            "tiny_rejection",
            [*MIX, "data.train.limit=null"],
            "data.train.mix must have neither weights nor a temperature for rejection",
        ),
        ("tiny_rejection", ["data.train.path=a.jsonl", SETS], "data.eval.sets must be unset for rejection"),
        ("tiny_evaluate", ["runs={a: .}", "baseline=a", SETS], "data.eval.sets must be unset for evaluate"),
    ],
)
def test_tasks_without_steps_or_sets_say_so(
    recipe: str, words: list[str], line: str, alignment: Callable[..., Any], files: None
) -> None:
    ended = alignment("run", recipe, *NATIVE, *words)
    assert ended.code == 2 and len(ended.err) == 1 and line in ended.err[0]

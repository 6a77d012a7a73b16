"""Rejection sampling, whole: replies at several temperatures, and several rounds through a pipeline of the user's."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from alignment.toy import gold

ROUNDS = """# Two rounds: the best of each prompt's replies, then the best and the worst as pairs
defaults:
  - task: pipeline
  - _self_

stages:
  - name: sft
    recipe: tiny_sft
    set: {data.train.limit: 2000, data.eval.limit: 8, train.max_steps: 60}

  - name: round1
    recipe: tiny_rejection
    set:
      model.path: "@sft/model"
      data.train.limit: 64
      num_samples: 6
      temperatures: [0.7, 1.0, 1.3]
      log.samples: 64

  - name: sft1
    recipe: tiny_sft
    set:
      model.path: "@sft/model"
      data.format: native
      data.train: {path: "@round1/selected.jsonl", limit: null}
      data.eval.limit: null
      train: {max_steps: 10, learning_rate: 1.0e-3}

  - name: round2
    recipe: tiny_rejection
    set: {model.path: "@sft1/model", data.train.limit: 64, num_samples: 6, select: best_and_worst, log.samples: 64}

  - name: dpo2
    recipe: tiny_dpo
    set:
      model.path: "@sft1/model"
      data.format: native
      data.train: {path: "@round2/selected.jsonl", limit: null}
      data.eval.limit: null
      train: {max_steps: 2}
"""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def chunks(rows: list[dict[str, Any]], size: int) -> list[list[dict[str, Any]]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_two_rounds(alignment: Callable[..., Any], own: Callable[[str, str], str], tmp_path: Path) -> None:
    """The first round's pick becomes demonstrations, from which the second round's policy comes; its pick, pairs."""
    ended = alignment("run", own("rounds", ROUNDS), "output_dir=out", "log.progress=false")
    assert (ended.code, ended.err) == (0, [])
    first, second = tmp_path / "out" / "round1", tmp_path / "out" / "round2"
    shown = {folder: chunks(lines(folder / "samples.jsonl"), 6) for folder in (first, second)}
    for row in (row for prompts in shown.values() for replies in prompts for row in replies):
        assert row["score"] == pytest.approx(gold([row["prompt"]], [row["reply"]])[0])
    complete = {folder: [[r for r in row if r["finished"] and r["reply"]] for row in shown[folder]] for folder in shown}
    best = [max(row, key=lambda r: r["score"]) for row in complete[first] if row]
    assert [(r["completion"], r["score"]) for r in lines(first / "selected.jsonl")] == [
        (r["reply"], pytest.approx(r["score"])) for r in best
    ]
    ends = [(max(row, key=lambda r: r["score"]), min(row, key=lambda r: r["score"])) for row in complete[second] if row]
    pairs = [(high["score"], low["score"]) for high, low in ends if high["score"] > low["score"]]
    selected = lines(second / "selected.jsonl")
    assert [(r["chosen_score"], r["rejected_score"]) for r in selected] == [pytest.approx(pair) for pair in pairs]
    assert len(best) > 40 and len(pairs) > 40
    (before,), (after,) = lines(first / "metrics.jsonl"), lines(second / "metrics.jsonl")
    assert after["reward"] > before["reward"] < before["reward/best"]
    assert (tmp_path / "out" / "dpo2" / "model" / "model.safetensors").is_file()

    temperatures = [row["temperature"] for row in shown[first][0]]
    assert temperatures == [0.7, 0.7, 1.0, 1.0, 1.3, 1.3] and "temperature" not in shown[second][0][0]
    scores = {t: [r["score"] for row in shown[first] for r in row if r["temperature"] == t] for t in (0.7, 1.0, 1.3)}
    for temperature, found in scores.items():
        assert before[f"reward/temperature_{temperature:g}"] == pytest.approx(mean(found))
    assert sum(before[f"best/temperature_{t:g}"] for t in scores) == pytest.approx(1)
    assert mean(scores[0.7]) > mean(scores[1.3])
    texts = [[r["reply"] for row in shown[first] for r in row if r["temperature"] == t] for t in scores]
    assert texts[0] != texts[1] != texts[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("temperatures=[1.0,0.0]", "temperatures must be > 0, and each another, got [1.0, 0.0]"),
        ("temperatures=[0.5,0.5]", "temperatures must be > 0, and each another, got [0.5, 0.5]"),
        ("temperatures=[0.5,1.0,1.5]", "num_samples must be a multiple of the number of temperatures (3), got 8"),
        (
            "temperatures=[0.5] generation.temperature=0.7",
            "generation.temperature must be left at 1 with temperatures, which take its place, got 0.7",
        ),
    ],
)
def test_temperatures_that_are_refused(words: str, message: str, alignment: Callable[..., Any]) -> None:
    ended = alignment("run", "tiny_rejection", *words.split())
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_rejection: {message}"])


def test_one_temperature_is_the_one_of_generation(alignment: Callable[..., Any], tmp_path: Path) -> None:
    small = [
        "data.train.limit=4",
        "num_samples=2",
        "log.samples=4",
        "generation.max_new_tokens=5",
        "log.progress=false",
    ]
    small += ["model.init.hidden_size=32", "model.init.intermediate_size=48"]
    (tmp_path / "rule_of_none.py").write_text("def rule(prompts, replies):\n    return [0.0 for r in replies]\n")
    small += ["reward.function=rule_of_none.rule", "log.trackers=[tensorboard]"]
    rows = []
    for name, words in (("a", "temperatures=[0.6]"), ("b", "generation.temperature=0.6")):
        ended = alignment("run", "tiny_rejection", *small, words, f"output_dir={name}")
        assert "log.trackers: rejection trains nothing, so that no metrics go there" in " ".join(ended.out.split())
        rows.append([row["reply"] for row in lines(tmp_path / name / "samples.jsonl")])
    assert rows[0] == rows[1] and len(rows[0]) == 8


INPUTS = """# A round from a model and pairs that are there already
defaults:
  - task: pipeline
  - _self_

inputs: {pairs: pairs.jsonl}
stages:
  - name: learn
    recipe: tiny_dpo
    set:
      model.path: "@policy/model"
      data: {format: native, train: {path: "@pairs", limit: null}, eval: {limit: null}}
      train: {max_steps: 1, eval_every: 0}
      reference.cache: false
      log.progress: false
"""


def test_a_pipeline_has_inputs_of_its_own(
    alignment: Callable[..., Any], own: Callable[[str, str], str], tmp_path: Path
) -> None:
    """A user's model and rows are given once, where stages refer to them as they do to earlier stages."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}\n' * 2)
    small = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=8", "batch.size=4"]
    quick = ["data.eval.limit=null", "train.max_steps=1", "train.warmup_steps=0", "train.eval_every=0"]
    assert alignment("run", "tiny_sft", *small, *quick, "output_dir=policy").code == 0

    def refused(recipe: str, words: str, line: str) -> None:
        ended = alignment("run", recipe, words, "output_dir=out")
        assert (ended.code, ended.err) == (2, [f"alignment: mine: {line}"])

    recipe = own("mine", INPUTS)
    missing = "stage learn: model.path: no such file or folder, got 'policy/model/model'"
    refused(recipe, "inputs.policy=policy/model", missing)
    recipe = own("mine", INPUTS.replace("@policy/model", "@policy"))
    known = "stage learn: model.path must refer to an earlier stage or one of inputs (pairs), got '@policy'"
    refused(recipe, "seed=1", known)
    refused(recipe, "inputs.learn=policy/model", "inputs must have other names than the stages, got ['learn']")
    ended = alignment("run", recipe, "inputs.policy=policy/model", "output_dir=out")
    assert ended.code == 0, ended
    assert (tmp_path / "out" / "learn" / "model" / "model.safetensors").exists()

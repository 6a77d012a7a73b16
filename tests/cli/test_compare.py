"""`compare`: runs side by side, and evaluations of the same prompts with paired intervals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.evaluate.metrics import paired_difference, proportion
from alignment.runs.scores import write_scores


def trained(folder: Path, beta: float, accuracy: float, task: str = "dpo") -> None:
    folder.mkdir(parents=True)
    settings = f"defaults: [{{task: {task}}}, _self_]\noutput_dir: {folder.name}\nseed: 0\nloss: {{beta: {beta}}}\n"
    (folder / "config.yaml").write_text(settings)
    (folder / "started.json").write_text("{}")
    row = {"step": 4, "loss": 0.5, "eval/rewards/accuracy": accuracy, "eval/rewards/pairs": 40}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def evaluation(folder: Path, gold: dict[str, dict[str, float]], judge: str = "a.b") -> None:
    """`gold`: method -> prompt -> score."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"defaults: [{{task: evaluate}}, _self_]\ngold: {judge}\n")
    rows = [
        {"part": "replies", "method": method, "id": prompt, "gold": score, "length": 7}
        for method, scores in gold.items()
        for prompt, score in scores.items()
    ]
    write_scores(folder / "scores.jsonl", rows)
    means = [{"name": name, "gold": {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 3}} for name in gold]
    (folder / "summary.json").write_text(json.dumps({"methods": means}))


def said(ended: Any) -> list[list[str]]:
    assert (ended.code, ended.err) == (0, [])
    return [line.split("\t") for line in ended.out.splitlines()]


def test_runs_side_by_side(alignment: Callable[..., Any], tmp_path: Path) -> None:
    trained(tmp_path / "a", 0.1, 0.5)
    trained(tmp_path / "b", 0.3, 0.75)
    low, high = proportion(30, 40).low, proportion(30, 40).high
    lines = said(alignment("compare", "a", "b"))
    assert lines[:5] == [
        ["", "a", "b"],
        ["loss.beta", "0.1", "0.3"],
        ["state", "not finished", "not finished"],
        ["step", "4", "4"],
        ["loss", "0.5", "0.5"],
    ]
    assert lines[5][0] == "eval/rewards/accuracy" and lines[5][2] == f"0.75 [{low:.3g}, {high:.3g}]"
    assert lines[6][0].endswith("prompt by prompt that is done by alignment evaluate a b --data FILE")
    assert len(lines) == 7  # what both share is not shown
    trained(tmp_path / "c", 0.1, 0.5, task="reward")  # which replies to nothing
    assert said(alignment("compare", "a", "c"))[-1][0] == "eval/rewards/accuracy"


def test_a_folder_stands_for_its_runs(alignment: Callable[..., Any], tmp_path: Path) -> None:
    for number in range(3):
        trained(tmp_path / "sweep" / str(number), 0.1 * number, 0.5)
    assert said(alignment("compare", "sweep"))[0] == ["", "0", "1", "2"]
    trained(tmp_path / "other" / "0", 0.5, 0.5)
    assert said(alignment("compare", "sweep/0", "other"))[0] == ["", "sweep/0", "other/0"]


def test_evaluations_of_the_same_prompts_are_paired(alignment: Callable[..., Any], tmp_path: Path) -> None:
    first, other = {"p": 0.1, "q": 0.5, "r": 0.4, "s": 0.9}, {"q": 0.7, "r": 0.9, "s": 0.9, "t": 0.0}
    evaluation(tmp_path / "a", {"dpo": first})
    evaluation(tmp_path / "b", {"dpo": other, "orpo": other})
    lines = said(alignment("compare", "a", "b"))
    assert ["dpo gold", "0.5 [0.25, 0.75]", "0.5 [0.25, 0.75]"] in lines
    assert ["orpo gold", "-", "0.5 [0.25, 0.75]"] in lines
    head = "dpo: b less a, paired on 3 shared prompts (of 4 and 4), with 95% intervals"
    place = lines.index([head])
    found = paired_difference([other[key] for key in "qrs"], [first[key] for key in "qrs"])
    words = f"{found.mean:+.4g} [{found.low:+.4g}, {found.high:+.4g}] includes 0"
    assert lines[place + 1 :] == [
        ["", "difference"],
        ["gold", words],
        ["length (tokens)", "+0 [+0, +0] includes 0"],
        ["not paired, for a model is known by its name: orpo (in b alone)"],
    ]


def test_of_runs_of_several_tasks_the_settings_in_which_those_of_one_task_differ(
    alignment: Callable[..., Any], tmp_path: Path
) -> None:
    trained(tmp_path / "a", 0.1, 0.5)
    trained(tmp_path / "b", 0.3, 0.5)
    evaluation(tmp_path / "c", {"x": {"p": 0.1}})
    lines = said(alignment("compare", "a", "b", "c"))
    assert lines[:3] == [["", "a", "b", "c"], ["task", "dpo", "dpo", "evaluate"], ["loss.beta", "0.1", "0.3", "-"]]
    assert "gold" not in [line[0] for line in lines] and "seed" not in [line[0] for line in lines]
    assert lines[-1] == ["not paired by prompt, without a scores.jsonl as evaluations have it: a, b"]


def test_entries_of_a_mapping_that_others_leave_empty_are_settings_too(
    alignment: Callable[..., Any], tmp_path: Path
) -> None:
    for task, columns in (("sft", "{}"), ("dpo", "{prompt: question, chosen: better}")):
        (tmp_path / task).mkdir()
        loss = "{}" if task == "sft" else "{beta: 0.1}"  # a group without keys is no mapping
        text = f"defaults: [{{task: {task}}}, _self_]\ndata: {{columns: {columns}}}\nloss: {loss}\n"
        (tmp_path / task / "config.yaml").write_text(text)
    lines = said(alignment("compare", "sft", "dpo"))
    assert lines[1:4] == [
        ["task", "sft", "dpo"],
        ["data.columns.prompt", "-", "question"],
        ["data.columns.chosen", "-", "better"],
    ]
    assert not any(line[0] in ("data.columns", "loss.beta") for line in lines)


def test_what_cannot_be_paired_is_told_with_its_reason(alignment: Callable[..., Any], tmp_path: Path) -> None:
    evaluation(tmp_path / "a", {"x": {"p": 0.1, "q": 0.2}, "y": {"p": 0.1, "q": 0.3}})
    evaluation(tmp_path / "b", {"x": {"p": 0.3, "q": 0.3}, "y": {"r": 0.1, "s": 0.3}})
    rows = [json.loads(line) for line in (tmp_path / "b" / "scores.jsonl").read_text().splitlines()]
    del rows[0]["gold"]
    for row in rows:
        row["kl"] = 0.5
    (tmp_path / "b" / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    lines = [line[0] for line in said(alignment("compare", "a", "b"))]
    assert "  gold: measured of 1 of them in both, and an interval needs two" in lines
    assert "  kl: measured in b alone" in lines
    assert lines[-1] == "y: not paired, for none of its prompts is in both"


def test_evaluations_with_little_in_common_say_so(alignment: Callable[..., Any], tmp_path: Path) -> None:
    evaluation(tmp_path / "a", {"x": {"p": 0.1, "q": 0.2}})
    evaluation(tmp_path / "b", {"y": {"p": 0.3, "q": 0.3}}, judge="c.d")
    evaluation(tmp_path / "c", {"x": {"other": 0.1}})
    evaluation(tmp_path / "d", {"x": {"q": 0.1}})
    evaluation(tmp_path / "e", {"y": {"q": 0.1}, "z": {"q": 0.1}})
    out = alignment("compare", "a", "b").out  # one model each: those are compared, whatever their names
    assert "y less x: b less a, paired on 2 shared prompts (of 2 and 2)" in out
    assert "  gold: measured by something else in each, so that there is no difference of it" in out
    assert "c and a evaluated nothing alike: no prompts are in both" in alignment("compare", "a", "c").out
    assert "  an interval needs two of them" in alignment("compare", "a", "d").out
    write_scores(tmp_path / "d" / "scores.jsonl", [{"part": "completions", "method": "x", "id": "q", "nll": 2.0}])
    assert "d and a evaluated nothing alike: a has replies, d completions" in alignment("compare", "a", "d").out
    line = "e and a evaluated nothing alike: neither a prompt nor a model's name is in both"
    assert line in alignment("compare", "a", "e").out


MISTAKES = {
    "": "alignment: compare needs the folders of runs: alignment compare RUN RUN, their output_dirs",
    "a": "alignment: compare: RUN must name two runs or more, or a folder of several, got 'a' alone",
    "a empty": "alignment: compare: RUN must be a run's folder, or one of several, got 'empty', which holds no",
    "a damaged": "alignment: compare: damaged/summary.json cannot be read",
    "a b": "alignment: no such folder 'b' (did you mean",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(words: str, alignment: Callable[..., Any], tmp_path: Path) -> None:
    trained(tmp_path / "a", 0.1, 0.5)
    (tmp_path / "empty").mkdir()
    trained(tmp_path / "damaged", 0.1, 0.5)
    (tmp_path / "damaged" / "summary.json").write_text("[")
    line = MISTAKES[words].removesuffix(" (did you mean")
    ended = alignment("compare", *words.split())
    assert ended.code == 2 and len(ended.err) == 1 and ended.err[0].startswith(line)

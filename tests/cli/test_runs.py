"""A run and its folder, through the command: made once, finished once, resumed, refused, swept, chained."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.cli import run as cli_run
from alignment.runs.claim import claim
from alignment.training import supervised

SMALL = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=64", "data.eval.limit=8"]
RUN = ["run", "tiny_sft", *SMALL, "batch.size=8"]
TWO = [*RUN, "train.max_steps=2"]


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(folder: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_run_leaves_config_metrics_and_model(alignment: Callable[..., Any], tmp_path: Path) -> None:
    ended = alignment(*TWO, "output_dir=out", "seed=3")
    assert ended.code == 0 and ended.err == []
    out = tmp_path / "out"
    expected = {
        "config.yaml",
        "metrics.jsonl",
        "progress.json",
        "model",
        "checkpoints",
        "started.json",
        "finished.json",
    }
    assert {path.name for path in out.iterdir()} == expected
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["seed"], config["train"]["max_steps"], config["batch"]["size"]) == (3, 2, 8)
    assert [row["step"] for row in rows(out)] == [1, 2]
    assert all(isinstance(row["loss"], float) for row in rows(out))
    assert "eval/loss" in rows(out)[-1]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out / "model"), AutoTokenizer.from_pretrained(out / "model")
    assert model.config.hidden_size == 32
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)
    assert tokenizer.chat_template


def test_a_step_of_more_rows_than_there_are_and_a_run_that_learns_nothing_are_said(
    alignment: Callable[..., Any], tmp_path: Path
) -> None:
    """A warm-up begins with a learning rate of 0, and the run's only step has that one."""
    few = [*RUN, "data.train.limit=5", "train.warmup_steps=4", "output_dir=out"]
    said = " ".join(alignment(*few, "train.max_steps=1").out.split())
    assert "WARNING: batch.size=8 is more than the 5 rows of data.train: a step has some more than once" in said
    assert "WARNING: nothing will be learned, for the learning rate is 0 in all steps of the run (1); a warm-up" in said
    said = " ".join(alignment(*few, "batch.size=5", "train.max_steps=2", "output_dir=two").out.split())
    rate = "the learning rate never reaches train.learning_rate=0.003: take more steps, or a shorter warm-up"
    assert (
        said.count("WARNING") == 1
        and f"(train.warmup_steps=4) is as long as the run's 2 steps or longer; {rate}" in said
    )
    rising = ["train.warmup_steps=0", "train.warmup_ratio=0.3", "batch.size=5", "train.max_steps=3", "output_dir=short"]
    said = " ".join(alignment(*few, *rising).out.split())
    line = "WARNING: the first of the run's 3 steps learns nothing: a warm-up (train.warmup_ratio=0.3) begins at rate 0"
    assert said.count("WARNING") == 1 and line in said
    ppo = ["run", "tiny_ppo", *SMALL, "batch.size=4", "generation.max_new_tokens=4", "train.warmup_steps=2"]
    said = alignment(*ppo, "train.max_steps=1", "ppo.epochs=2", "output_dir=three").out
    assert "nothing will be learned" not in said  # whose second inner step has another one
    assert "(train.warmup_steps=2) is as long as the run's 2 steps or longer" in said
    calm = ["train.max_steps=1", "batch.size=5", "train.warmup_steps=0", "output_dir=four"]
    assert "WARNING" not in alignment(*few, *calm).out


def test_the_precision_of_a_run_is_said_and_its_kernels_are_asked_for(
    alignment: Callable[..., Any], any_kernels_again: None, tmp_path: Path
) -> None:
    """Asked for again without, a run of the same process has any kernel."""
    ended = alignment(*TWO, "output_dir=out", "distributed.deterministic=true")
    assert ended.code == 0 and ended.err == []
    assert ended.out.count("precision: float32 on a CPU; distributed.precision=bfloat16 computes in bfloat16") == 1
    assert re.search(r"^model: ([\d,]+) weights, \1 trained \(all\)$", ended.out, re.MULTILINE), ended.out
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["distributed"]["precision"] == "auto"
    assert alignment("run", str(tmp_path / "out" / "config.yaml")).out.count("nothing to do") == 1
    other = alignment(*TWO, "output_dir=other", "distributed.precision=float32")
    assert other.code == 0 and "precision" not in other.out
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    assert without_time(tmp_path / "out") == without_time(tmp_path / "other")


def test_the_folder_of_a_run_is_named_by_recipe_time_and_model(alignment: Callable[..., Any], tmp_path: Path) -> None:
    assert alignment(*TWO, "train.max_steps=1").code == 0
    (folder,) = (tmp_path / "runs" / "tiny_sft").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_tiny", folder.name)
    assert yaml.safe_load((folder / "config.yaml").read_text())["output_dir"] == f"runs/tiny_sft/{folder.name}"


def test_the_same_command_again_has_nothing_to_do(alignment: Callable[..., Any], tmp_path: Path) -> None:
    alignment(*TWO, "output_dir=out")
    before = state(tmp_path)
    ended = alignment(*TWO, "output_dir=out")
    assert ended.code == 0
    assert "finished already" in ended.out
    assert state(tmp_path) == before


def test_another_config_in_the_same_folder_is_refused(alignment: Callable[..., Any], tmp_path: Path) -> None:
    alignment(*TWO, "output_dir=out")
    before = state(tmp_path)
    ended = alignment(*TWO, "output_dir=out", "seed=1")
    assert ended.code == 2
    line = "output_dir holds a run of another config or other inputs (seed was 0 and is 1), got 'out'"
    assert ended.err == [f"alignment: tiny_sft: {line}; another output_dir keeps both, seed=0 goes on as before"]
    assert state(tmp_path) == before


def test_a_copied_input_is_the_same_and_an_edited_one_another(alignment: Callable[..., Any], tmp_path: Path) -> None:
    rows = "".join(json.dumps({"prompt": f"say {n}", "completion": f"moo {n}"}) + "\n" for n in range(4))
    (tmp_path / "rows.jsonl").write_text(rows)
    words = ["run", "tiny_sft", *SMALL[:2], "data=native", "data.train.path=rows.jsonl", "batch.size=4"]
    words += ["train.max_steps=1", "output_dir=out"]
    assert alignment(*words).code == 0
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "rows.jsonl").write_text(rows)
    ended = alignment(*words)
    assert ended.code == 0 and "finished already" in ended.out
    (tmp_path / "rows.jsonl").write_text(rows.replace("moo 3", "moo 4"))
    ended = alignment(*words)
    assert ended.code == 2 and "other inputs (the contents of data.train.path changed), got 'out'" in ended.err[0]


def test_a_run_of_an_earlier_version_is_told_apart(alignment: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "started.json").write_text('{"fingerprint": "0123abcd"}')
    ended = alignment(*TWO, "output_dir=out")
    assert ended.code == 2 and len(ended.err) == 1
    assert (
        "an earlier version of this package" in ended.err[0] and "without out/started.json the run goes" in ended.err[0]
    )
    (tmp_path / "out" / "started.json").write_text('{"finger')
    ended = alignment(*TWO, "output_dir=out")
    assert ended.code == 2 and ended.err[0].startswith("alignment: tiny_sft: out/started.json cannot be read")


def test_two_at_once_in_one_folder_are_not_two_runs(alignment: Callable[..., Any], tmp_path: Path) -> None:
    with claim(tmp_path / "out"):
        ended = alignment(*TWO, "output_dir=out")
        assert ended.code == 2 and len(ended.err) == 1
        assert ended.err[0].startswith(f"alignment: tiny_sft: output_dir is in use by process {os.getpid()} on ")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"owner.json"}
    with claim(tmp_path / "sweep" / "0"):
        assert "output_dir is in use by process" in alignment(*TWO, "-m", "seed=1,2", "output_dir=sweep").err[0]


LONGER = [*RUN, "checkpoint.every=1", "data.eval.limit=null", "output_dir=out"]


def test_a_finished_run_goes_on_to_a_later_end(alignment: Callable[..., Any], tmp_path: Path) -> None:
    """With a schedule that does not ask for the end it is the uninterrupted run, to the last bit."""
    constant = [*LONGER, "train.schedule=constant"]
    assert alignment(*constant, "train.max_steps=2").code == 0
    ended = alignment(*constant, "train.max_steps=4")
    assert ended.code == 0 and ended.err == []
    assert "out: goes on to train.max_steps=4, where 2 was asked before\n" in ended.out
    assert [row["step"] for row in rows(tmp_path / "out")] == [1, 2, 3, 4]
    assert alignment(*constant, "train.max_steps=4", "output_dir=whole").code == 0
    assert without_time(tmp_path / "out") == without_time(tmp_path / "whole")
    assert same_weights(tmp_path / "out", tmp_path / "whole")
    asked, went_on = (json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines())
    assert (asked["asked"], asked["before"]) == ({"train.max_steps": 4}, {"train.max_steps": 2})
    assert went_on["going_on_from"] == 2
    assert "finished already" in alignment(*constant, "train.max_steps=4").out
    ended = alignment(*constant, "train.max_steps=3")
    assert (
        ended.code == 2
        and "of train.max_steps=4 (step 4 is saved), which cannot be made shorter, to train.max_steps=" in ended.err[0]
    )
    ended = alignment(*constant, "train.max_steps=null", "train.epochs=9")
    assert ended.code == 2 and "begun with train.max_steps=4 and goes on by that key" in ended.err[0]


def test_a_longer_run_takes_the_rates_of_its_new_schedule(alignment: Callable[..., Any], tmp_path: Path) -> None:
    linear = [*LONGER, "train.schedule=linear", "train.learning_rate=1e-3", "train.warmup_steps=0"]
    assert alignment(*linear, "train.max_steps=2").code == 0
    assert [row["lr"] for row in rows(tmp_path / "out")] == pytest.approx([1e-3, 5e-4])
    ended = alignment(*linear, "train.max_steps=4")
    assert ended.code == 0 and "so this is not the run that train.max_steps=4 would have been" in ended.out
    assert [row["lr"] for row in rows(tmp_path / "out")] == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])


def test_a_finished_run_without_checkpoints_says_what_to_do(alignment: Callable[..., Any], tmp_path: Path) -> None:
    assert alignment(*TWO, "output_dir=out", "checkpoint.save_last=false").code == 0
    before = state(tmp_path)
    ended = alignment(*RUN, "train.max_steps=3", "output_dir=out")
    assert ended.code == 2 and len(ended.err) == 1
    assert "without checkpoints (checkpoint.save_last), so it cannot go on to train.max_steps=3" in ended.err[0]
    assert "model.path=out/model" in ended.err[0]
    assert state(tmp_path) == before


def test_one_seed_makes_one_run_and_another_seed_another(alignment: Callable[..., Any], tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        alignment(*TWO, f"output_dir={name}", f"seed={seed}")
    assert without_time(tmp_path / "a") == without_time(tmp_path / "b") != without_time(tmp_path / "c")
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


def test_an_interrupted_run_goes_on_from_its_checkpoint(
    alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*RUN, "train.max_steps=5", "checkpoint.every=2"]
    alignment(*words, "output_dir=whole")
    train_step, steps = supervised.train_step, []

    def counted(*arguments: Any) -> Any:
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(1)
        return train_step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(supervised, "train_step", counted)
        ended = alignment(*words, "output_dir=cut")
    assert (ended.code, ended.err) == (130, ["alignment: interrupted"])
    assert [row["step"] for row in rows(tmp_path / "cut")] == [1, 2, 3]
    steps.clear()
    with monkeypatch.context() as patched:
        patched.setattr(supervised, "train_step", counted)
        assert alignment(*words, "output_dir=cut").code == 0
    assert len(steps) == 3  # steps 3, 4 and 5
    assert without_time(tmp_path / "cut") == without_time(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_a_sweep_makes_a_folder_for_each_value(alignment: Callable[..., Any], tmp_path: Path) -> None:
    ended = alignment(*RUN, "-m", "train.max_steps=1,2", "output_dir=sweep")
    assert ended.code == 0 and ended.err == []
    told = [line for line in ended.out.splitlines() if line.startswith("next: ")]
    assert "next: alignment push sweep/1 sweep-1 --private" in told and told[-1] == "next: alignment status sweep"
    for number, steps in (("0", 1), ("1", 2)):
        folder = tmp_path / "sweep" / number
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert (config["train"]["max_steps"], config["output_dir"]) == (steps, f"sweep/{number}")
        assert len(rows(folder)) == steps
        assert (folder / "finished.json").exists()


def test_a_sweep_in_the_default_folder_has_one_date(alignment: Callable[..., Any], tmp_path: Path) -> None:
    assert alignment(*RUN, "--multirun", "train.max_steps=1,2").code == 0
    (folder,) = (tmp_path / "runs" / "tiny_sft").iterdir()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"0", "1"}


def test_a_file_of_the_name_of_hydra_s_own_is_kept(alignment: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    file = tmp_path / "sweep" / "multirun.yaml"
    file.write_text("mine: 1\n")
    words = [*RUN, "-m", "train.max_steps=1", "output_dir=sweep"]
    ended = alignment(*words)
    assert ended.code == 2 and len(ended.err) == 1
    assert "no sweep has written and this one would replace, as 'sweep/multirun.yaml'; another" in ended.err[0]
    assert file.read_text() == "mine: 1\n" and list(file.parent.iterdir()) == [file]
    file.unlink()
    assert alignment(*words).code == 0 and "finished already" in alignment(*words).out


def test_a_recipe_may_be_a_sweep_itself(alignment: Callable[..., Any], own: Callable[..., str], tmp_path: Path) -> None:
    text = "# S\ndefaults: [tiny_sft, _self_]\nhydra: {mode: MULTIRUN, sweeper: {params: {train.max_steps: '1,%s'}}}\n"
    bad = alignment("run", own("sweep", text % "-1"), *SMALL, "output_dir=out")
    assert (bad.code, bad.err) == (2, ["alignment: sweep: train.max_steps must be >= 0, got -1"])
    assert not (tmp_path / "out").exists()
    assert alignment("run", own("sweep", text % "2"), *SMALL, "output_dir=out").code == 0
    assert [len(rows(tmp_path / "out" / number)) for number in ("0", "1")] == [1, 2]
    ended = alignment("run", "own/sweep.yaml", *SMALL, "seed=1,-2", "output_dir=more")
    assert (ended.code, ended.err) == (2, ["alignment: sweep: seed must be >= 0, got -2"])
    assert not (tmp_path / "more").exists()


def test_tensorboard_writes_events(alignment: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    ended = alignment(*TWO, "output_dir=out", "log.trackers=[tensorboard]")
    assert ended.code == 0, ended.err
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))


PIPELINE = """# Two stages
defaults:
  - task: pipeline
  - _self_
stages:
  - name: sft
    recipe: tiny_sft
    set: {small, train.max_steps: 1}
  - name: dpo
    recipe: tiny_dpo
    set: {small, model.path: "@sft/model", train.max_steps: 1, reference.cache: false}
""".replace("small", "data.train.limit: 16, data.eval.limit: 4, batch.size: 4")


def test_a_pipeline_runs_what_has_changed_and_keeps_what_was(
    alignment: Callable[..., Any], own: Callable[..., str], tmp_path: Path
) -> None:
    words = ["run", own("two", PIPELINE)]
    assert alignment(*words).code == 0
    out = tmp_path / "runs" / "two"
    assert {path.name for path in out.iterdir()} >= {"sft", "dpo"}
    assert yaml.safe_load((out / "dpo" / "config.yaml").read_text())["model"]["path"] == "runs/two/sft/model"

    before = {path: time for path, time in state(tmp_path).items() if path.is_file()}
    ended = alignment(*words)
    assert ended.code == 0 and ended.out.count("unchanged, skipped") == 2
    assert {path: time for path, time in state(tmp_path).items() if path.is_file()} == before

    own("two", PIPELINE.replace("train.max_steps: 1, ref", "train.max_steps: 2, ref"))
    ended = alignment(*words)
    assert ended.code == 0 and ended.out.count("unchanged, skipped") == 1
    assert {path.name for path in out.iterdir()} >= {"sft", "dpo", "dpo.old-1"}
    assert [len(rows(out / name)) for name in ("sft", "dpo", "dpo.old-1")] == [1, 2, 1]

    own("two", PIPELINE.replace("sft\n    set: {", "sft\n    set: {seed: 9, "))
    ended = alignment(*words)
    assert ended.code == 0 and "unchanged, skipped" not in ended.out  # the second stage reads what the first one wrote
    assert {path.name for path in out.iterdir()} >= {"sft.old-1", "dpo.old-1", "dpo.old-2"}


def test_a_stage_whose_folder_is_not_its_own_is_told_before_the_first_one(
    alignment: Callable[..., Any], own: Callable[..., str], tmp_path: Path
) -> None:
    recipe = own("two", PIPELINE.replace("@sft/model", "own"))
    (tmp_path / "own" / "config.json").write_text("{}")
    (tmp_path / "runs" / "two" / "dpo" / "model").mkdir(parents=True)
    ended = alignment("run", recipe)
    assert ended.code == 2 and len(ended.err) == 1
    assert "stage dpo: output_dir must not hold what no run has written" in ended.err[0]
    assert "as 'runs/two/dpo/model'; another output_dir keeps it" in ended.err[0]
    assert not (tmp_path / "runs" / "two" / "sft").exists()


def test_a_bad_row_is_one_line_with_file_and_line(alignment: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n{"prompt": "Hi"}\n')
    words = ["model=tiny", "data=native", "data.train.path=rows.jsonl", "train.max_steps=1"]
    ended = alignment("run", "tiny_sft", *words)
    assert ended.code == 2
    assert len(ended.err) == 1 and ended.err[0].startswith("alignment: tiny_sft: rows.jsonl:2: "), ended.err


def test_a_mistake_in_the_data_leaves_no_claim_on_the_folder(alignment: Callable[..., Any], tmp_path: Path) -> None:
    data, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    good = '{"prompt": "a", "chosen": "b c", "rejected": "d"}\n'
    data.write_text(good + '{"prompt": "a", "chosen": "b"}\n')
    words = ["run", "tiny_dpo", "data=native", f"data.train.path={data}", "batch.size=1", "train.max_steps=1"]
    ended = alignment(*words, f"output_dir={out}", "reference.cache=false")
    assert (ended.code, len(ended.err)) == (2, 1)
    assert not out.exists()
    data.write_text(good)
    assert alignment(*words, f"output_dir={out}", "reference.cache=false").code == 0
    assert alignment("run", str(out / "config.yaml")).code == 0, "its config is a recipe; the run is finished"


def test_a_mistake_in_the_data_leaves_no_folder_above_either(
    alignment: Callable[..., Any], own: Callable[..., str], tmp_path: Path
) -> None:
    """Of a run, a sweep and a pipeline: runs/ and runs/RECIPE are gone as well."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    rows = "data.format: native, data.train.path: pairs.jsonl, data.eval.limit: null"
    stage = f"{{name: dpo, recipe: tiny_dpo, set: {{{rows}}}}}"
    pipe = own("pipe", f"# Mine\ndefaults: [{{task: pipeline}}, _self_]\nstages:\n  - {stage}\n")
    words = ["run", "tiny_dpo", "data=native", "data.train.path=pairs.jsonl"]
    before = state(tmp_path)
    for command in (words, [*words, "-m", "seed=1,2"], ["run", pipe, "output_dir=deep/er/pipe"]):
        ended = alignment(*command)
        assert ended.code == 2 and "pairs.jsonl:1: field `rejected` is missing" in ended.err[-1], ended.err
        assert state(tmp_path) == before and not (tmp_path / "runs").exists() and not (tmp_path / "deep").exists()


def test_a_sweep_that_begins_a_second_after_it_was_composed_leaves_nothing_either(
    alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is named by the second, and its config is composed twice: here and by Hydra."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    at_once = cli_run.leaving_no_record

    def later(*words: Any) -> Any:
        time.sleep(1.1)
        return at_once(*words)

    monkeypatch.setattr(cli_run, "leaving_no_record", later)
    ended = alignment("run", "tiny_dpo", "data=native", "data.train.path=pairs.jsonl", "-m", "seed=1,2")
    assert ended.code == 2 and "field `rejected` is missing" in ended.err[-1]
    assert not (tmp_path / "runs").exists()


def test_a_mistake_in_the_data_takes_nothing_that_was_there(
    alignment: Callable[..., Any], own: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi"}\n')
    data = "data: {format: native, train: {path: rows.jsonl}, eval: {limit: null}}"
    recipe = own("config", f"# Mine\ndefaults: [tiny_sft, _self_]\n{data}\n")
    before = state(tmp_path)
    ended = alignment("run", recipe, "output_dir=own")
    assert ended.code == 2 and "as 'own/config.yaml'; another output_dir keeps it, got 'own'" in ended.err[0]
    assert state(tmp_path) == before
    (tmp_path / "out").mkdir()
    ended = alignment("run", recipe, "output_dir=out")
    assert ended.code == 2 and "rows.jsonl:1: " in ended.err[0]
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / "notes.txt").write_text("mine")
    ended = alignment("run", recipe, "output_dir=out")
    assert ended.code == 2 and "output_dir must be a new or an empty folder" in ended.err[0]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_relative_model_path_is_kept_as_it_was_typed(
    alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the folder's own config from where it was typed goes on; elsewhere the path is named. The same model
    by its whole path is the same input."""
    assert alignment(*TWO, "output_dir=base").code == 0
    words = [*RUN[:2], "model=pretrained", "data.train.limit=8", "batch.size=4", "train.max_steps=1", "output_dir=out"]
    assert alignment(*words, "model.path=base/model").code == 0
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["model"]["path"] == "base/model"
    for again in (["run", "out/config.yaml"], [*words, f"model.path={tmp_path / 'base' / 'model'}"]):
        ended = alignment(*again)
        assert ended.code == 0 and "finished already" in ended.out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ended = alignment("run", "../out/config.yaml")
    assert ended.code == 2 and len(ended.err) == 1
    assert "model.path: no such file or folder, got 'base/model'" in ended.err[0]


def test_output_dir_keeps_the_name_that_was_typed(alignment: Callable[..., Any], tmp_path: Path) -> None:
    assert alignment(*TWO, "output_dir=1e3").code == 0
    assert (tmp_path / "1e3" / "finished.json").exists() and not (tmp_path / "1000.0").exists()


@pytest.mark.parametrize("words", [["run"], ["check"], ["submit", "cluster=slurm", "--dry-run"]], ids=lambda w: w[0])
def test_each_verb_tells_of_a_folder_that_no_run_can_be_in(
    words: list[str], alignment: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoints").touch()
    verb, *more = words
    ended = alignment(verb, "tiny_sft", "output_dir=out", *more)
    assert ended.code == 2 and len(ended.err) == 1
    assert ended.err[0].startswith("alignment: tiny_sft: output_dir must be a folder"), ended.err

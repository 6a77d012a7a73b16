"""A pipeline's inputs: paths that the user gives, to which stages refer as `@name`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL = ["data.train.limit=8", "batch.size=2", "train.max_steps=1", "train.warmup_steps=0", "log.progress=false"]
SMALL += ["model.init.hidden_size=32", "model.init.intermediate_size=48", "data.eval.limit=null", "train.eval_every=0"]
PIPE = """# Two stages that read the user's run
defaults: [{task: pipeline}, _self_]
inputs: {base: "???"}
stages:
  - name: more
    recipe: tiny_sft
    set: {model.path: "@base/model", data.train.limit: 8, batch.size: 2, train.max_steps: 1, train.warmup_steps: 0}
  - name: compared
    recipe: tiny_evaluate
    set: {runs: {base: "@base", more: "@more"}, baseline: base, data.eval.limit: 2, generation.max_new_tokens: 4}
"""


def test_an_input_may_be_a_run_s_folder_whose_parts_stages_read(
    alignment: Callable[..., Any], own: Callable[..., str], tmp_path: Path
) -> None:
    assert alignment("run", "tiny_sft", *SMALL, "output_dir=first").code == 0
    recipe = own("pipe", PIPE)
    set_ = ["stages.more.set.data.eval.limit=null", "stages.more.set.train.eval_every=0", "log.progress=false"]
    ended = alignment("run", recipe, "inputs.base=first", *set_, "output_dir=out")
    assert (ended.code, ended.err) == (0, [])
    assert (tmp_path / "out" / "compared" / "report.html").is_file()


def test_what_is_wrong_with_an_input_is_found_before_the_first_stage(
    alignment: Callable[..., Any], own: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").write_text("defaults:\n  - task: sft\n")
    run_as_model = own("pipe", PIPE.replace('"@base/model"', '"@base"'))
    ended = alignment("run", run_as_model, "inputs.base=first", "output_dir=out")
    said = "stage more: model.path must be the folder of a model, got 'first', that of a run of sft that has left no"
    assert ended.code == 2 and ended.err[0].startswith(f"alignment: pipe: {said}")
    ended = alignment("run", own("pipe", PIPE), "inputs.base=nowhere", "output_dir=out")
    assert (ended.code, ended.err) == (2, ["alignment: pipe: inputs.base: no such file or folder, got 'nowhere'"])
    assert not (tmp_path / "out").exists()


def test_an_input_that_no_stage_reads_is_refused(alignment: Callable[..., Any], tmp_path: Path) -> None:
    """The recipe's own first stage makes its model: another given here would go unused."""
    (tmp_path / "mine").mkdir()
    ended = alignment("run", "tiny_iterative_dpo", "inputs.model=mine", "output_dir=out")
    said = "inputs.model is read by no stage, which would refer to it as `@model`"
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_iterative_dpo: {said}"])

"""A run's folder in the place of a model's, by the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

SMALL = (
    *("model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=8", "data.eval.limit=null"),
    *("batch.size=4", "train.max_steps=1", "train.warmup_steps=0", "train.eval_every=0", "log.progress=false"),
)
STAGES = """\
defaults: [{task: pipeline}, _self_]
output_dir: out
inputs: {base: first}
stages:
- name: next
  recipe: tiny_sft
  set: {model: pretrained, model.path: '@base', train.max_steps: 1, train.warmup_steps: 0, train.eval_every: 0,
    data.eval.limit: null, data.train.limit: 8, batch.size: 4}
- name: last
  recipe: tiny_dpo
  set: {model: pretrained, model.path: '@next', reference.path: '@base', train.max_steps: 1, train.warmup_steps: 0,
    train.eval_every: 0, data.eval.limit: null, data.train.limit: 8, batch.size: 4}
"""


def test_a_run_is_taken_for_its_model_and_so_is_a_stage(
    alignment: Callable[..., Any], own: Callable[[str, str], str]
) -> None:
    assert alignment("run", "tiny_sft", *SMALL, "output_dir=first").code == 0
    recipe = own("pipe", STAGES)
    ended = alignment("run", recipe)
    assert (ended.code, ended.err) == (0, [])
    written = [OmegaConf.load(f"out/{stage}/config.yaml") for stage in ("next", "last")]
    assert [each.model.path for each in written] == ["first/model", "out/next/model"]
    assert written[1].reference.path == "first/model"
    assert alignment("run", recipe).out.count("unchanged, skipped") == 2
    refused = alignment("run", "out")
    assert refused.code == 2 and "`alignment run out/config.yaml`" in refused.err[0]
    assert Path("out/last/model/config.json").is_file()

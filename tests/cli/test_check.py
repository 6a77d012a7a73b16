"""The verb `check`: lines, exit codes, and nothing left behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.cli.main import UNREAD

SMALL = ("data.train.limit=12", "data.eval.limit=2", "model.init.hidden_size=32", "model.init.intermediate_size=32")


def test_a_sound_run_ends_with_0_and_leaves_nothing(alignment: Callable[..., Any], tmp_path: Path) -> None:
    ended = alignment("check", "tiny_sft", *SMALL)
    lines = ended.out.splitlines()
    assert ended.code == 0 and ended.err == []
    assert sum(line.startswith("ok ") for line in lines) >= 4
    assert ", 0 FAIL; " in lines[-2] and lines[-2].endswith("nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_an_unsound_run_ends_with_1(alignment: Callable[..., Any]) -> None:
    ended = alignment("check", "tiny_sft", *SMALL, "train.max_grad_norm=1e-14")
    failed = [line for line in ended.out.splitlines() if line.startswith("FAIL")]
    assert ended.code == 1 and len(failed) == 1 and "overfits a few rows" in failed[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny_sft", "data=native", "data.train.path=gone.jsonl"], "data.train.path: no such file"),
        (["tiny_sft", "train.learning_rate=-1"], "train.learning_rate must be > 0"),
        (["tiny_sft", "-m"], "check takes one run"),
        ([], "check needs a recipe"),
    ],
)
def test_a_mistake_is_one_line_and_ends_with_2(words: list[str], said: str, alignment: Callable[..., Any]) -> None:
    ended = alignment("check", *words)
    assert ended.code == 2 and len(ended.err) == 1 and said in ended.err[0]


def test_of_a_pipeline_the_stages_whose_inputs_exist_are_checked(
    alignment: Callable[..., Any], own: Callable[[str, str], str]
) -> None:
    stages = "\n".join(
        [
            "# Two stages",
            "defaults: [{task: pipeline}, _self_]",
            "stages:",
            "  - {name: sft, recipe: tiny_sft, set: {data.train.limit: 12, data.eval.limit: 2}}",
            "  - {name: dpo, recipe: tiny_dpo, set: {model: pretrained, model.path: '@sft/model'}}",
        ]
    )
    ended = alignment("check", own("two", stages))
    assert ended.code == 0
    assert "sft (tiny_sft)" in ended.out and "dpo (tiny_dpo): not checked, there is no model.path=" in ended.out


def test_it_ends_with_its_reader(tmp_path: Path) -> None:
    """As before `| head`: without a word, as soon as there is a line that nobody reads, and without going on."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "alignment", "check", "tiny_sft", *SMALL]
    with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, text=True) as process:
        os.close(write)
        with os.fdopen(read) as lines:
            lines.readline()
        assert process.stderr is not None and process.stderr.read() == ""
    assert process.returncode == UNREAD
    assert list(tmp_path.iterdir()) == []

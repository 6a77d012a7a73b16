"""Tasks from outside of the package, and folders that lie beside the user's recipes: what is wrong is one line."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.config.tasks import TASKS

GOOD = """
from dataclasses import dataclass
from pathlib import Path
from alignment.config.run import RunConfig

@dataclass
class Mine(RunConfig):
    size: int = 3

def run(config: Mine, folder: Path) -> None:
    print(f"size {config.size}")
"""
RECIPE = "defaults: [{task: TASK}, _self_]\n"
CANNOT = r"task: 'mine\.task' cannot be imported: "
BROKEN = {  # module: what is told of it
    "raises = 1 / 0": CANNOT + r"ZeroDivisionError: division by zero \(.*mine/task\.py:1\)$",
    "raise ValueError('no')": CANNOT + r"ValueError: no \(.*mine/task\.py:1\)$",
    "import sys; sys.exit(3)": CANNOT + r"SystemExit: 3 \(.*mine/task\.py:1\)$",
    "def run(:": CANNOT + r"SyntaxError: .* \(.*mine/task\.py:1\)$",
    "import nowhere": CANNOT + r"ModuleNotFoundError: No module named 'nowhere' \(",
    "walk = 3": r"task: 'mine\.task' has no function run; it must be a module with a function run\(config, folder\)",
    "def run(config: 'Nope'): ...": r"the annotations of mine\.task\.run cannot be read: name 'Nope' is not defined",
    "def run(config: int): ...": r"task: the first argument of mine\.task\.run is <class 'int'>; it must be",
    "from alignment.config.tasks import SFTConfig\ndef run(config: SFTConfig, folder): ...": (
        r"the config of mine\.task\.run is SFTConfig, which is sft's: give it a class of its own, such as `@dataclass"
    ),
    GOOD.replace("int = 3", "set[int] = None"): r"task: Mine of 'mine\.task' cannot be a config: Unexpected type annot",
}
NO_MODULE = r"task must be one of sft, .*, or the dotted path of a module, got "


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """`task(text)` writes the module `mine.task` where the command is run."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = dict(TASKS)

    def write(text: str) -> None:
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / "task.py").write_text(text.lstrip("\n"))

    yield write
    for name in set(TASKS) - set(before):
        del TASKS[name]
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def refused(alignment: Callable[..., Any], words: list[str], pattern: str) -> None:
    ended = alignment(*words)
    assert (ended.code, ended.out, len(ended.err)) == (2, "", 1), ended
    assert re.search(pattern, ended.err[0]), ended.err


@pytest.mark.parametrize("text", BROKEN)
def test_a_module_that_is_no_task_is_one_line(
    text: str, alignment: Callable[..., Any], own: Callable[[str, str], str], task: Callable[[str], None]
) -> None:
    task(text)
    refused(alignment, ["run", own("mine", RECIPE.replace("TASK", "mine.task"))], BROKEN[text])


@pytest.mark.parametrize("name", [".dpo", "..dpo", "./mine.task", "../x.y", "mine.task.", "dpo.ya-ml"])
def test_what_is_no_dotted_path_is_told(
    name: str, alignment: Callable[..., Any], own: Callable[[str, str], str]
) -> None:
    text = RECIPE.replace("TASK", f"'{name}'")
    for words in (["run", own("mine", text)], ["run", own("mine", text), "--help"]):
        refused(alignment, words, NO_MODULE if "/" not in name else "must be one of")


def test_a_module_may_have_any_name_and_one_that_is_not_there_is_told_with_where_it_was_looked_for(
    alignment: Callable[..., Any], own: Callable[[str, str], str], task: Callable[[str], None], tmp_path: Path
) -> None:
    task(GOOD)
    (tmp_path / "mine" / "task.py").rename(tmp_path / "mine" / "yaml.py")
    ended = alignment("run", own("mine", RECIPE.replace("TASK", "mine.yaml")), "size=4", "output_dir=out")
    assert ended.code == 0 and "size 4" in ended.out
    refused(alignment, ["run", own("b", RECIPE.replace("TASK", "dpo.yaml"))], r"no module 'dpo\.yaml' \(No module")
    refused(alignment, ["run", own("c", RECIPE.replace("TASK", "nil.task"))], f"looked for in {tmp_path} and where PY")


def test_a_task_that_ends_the_process_is_told(
    alignment: Callable[..., Any], own: Callable[[str, str], str], task: Callable[[str], None]
) -> None:
    """Its exit code would be the command's, which says of 0 that the run is finished."""
    task(GOOD.replace('print(f"size {config.size}")', "raise SystemExit(0)"))
    ended = alignment("run", own("mine", RECIPE.replace("TASK", "mine.task")), "output_dir=out")
    line = "alignment: mine: mine.task ended by sys.exit(0) before its run was finished"
    assert (ended.code, ended.err) == (2, [line])


def test_check_asks_a_task_for_its_objective(
    alignment: Callable[..., Any], own: Callable[[str, str], str], task: Callable[[str], None]
) -> None:
    task(GOOD)
    words = ["check", own("mine", RECIPE.replace("TASK", "mine.task"))]
    refused(
        alignment, words, r"alignment check needs a function objective\(.*\) in the task's module, got 'mine\.task'"
    )


@pytest.mark.parametrize("words", [[], ["--help"]])
@pytest.mark.parametrize("text", ["defaults: [{model: tiny}, _self_]\n", "defaults: [{task: null}, _self_]\n"])
def test_a_recipe_without_a_task(
    words: list[str], text: str, alignment: Callable[..., Any], own: Callable[[str, str], str]
) -> None:
    refused(alignment, ["run", own("mine", text), *words], "mine: a recipe's defaults must name its task, one of sft, ")


def test_a_file_in_the_place_of_a_task_is_named(
    alignment: Callable[..., Any], own: Callable[[str, str], str], tmp_path: Path
) -> None:
    recipe = own("mine", "defaults: [tiny_dpo, _self_]\n")
    (tmp_path / "own" / "task").mkdir()
    (tmp_path / "own" / "task" / "dpo.yaml").write_text("# @package _global_\nloss: {beta: 0.9}\n")
    line = r"own/task/dpo\.yaml stands in the place of the task dpo: give it another name, and let its defaults begin"
    refused(alignment, ["run", recipe, "output_dir=out"], line)
    (tmp_path / "own" / "task" / "dpo.yaml").rename(tmp_path / "own" / "task" / "sharp_dpo.yaml")
    text = "# @package _global_\ndefaults: [dpo, _self_]\nloss: {rpo_alpha: 0.5}\n"
    (tmp_path / "own" / "task" / "sharp_dpo.yaml").write_text(text)
    shown = alignment("run", recipe, "task=sharp_dpo", "--cfg", "job", "--package", "loss")
    assert shown.code == 0 and "rpo_alpha: 0.5" in shown.out and "label_smoothing: 0.0" in shown.out


def test_a_folder_beside_a_recipe_is_a_group_where_it_holds_presets_alone(
    alignment: Callable[..., Any], own: Callable[[str, str], str], tmp_path: Path
) -> None:
    """Not one with data, runs or sweeps in it, which would take the key of its name away."""
    recipe = own("mine", "defaults: [tiny_dpo, _self_]\n")
    beside = tmp_path / "own"
    for folder in ("seed", "output_dir", "batch", "data"):
        (beside / folder).mkdir()
    (beside / "seed" / "rows.jsonl").write_text("{}\n")
    (beside / "output_dir" / "multirun.yaml").write_text("a: 1\n")
    for name in ("config.yaml", "started.json"):
        (beside / "batch" / name).write_text("{}\n")
    (beside / "data" / "few.yaml").write_text("# Few\ndefaults: [toy]\ntrain: {limit: 7}\n")
    shown = alignment("run", recipe, "seed=3", "output_dir=out", "batch={size: 8}", "data=few", "--cfg", "job")
    assert shown.code == 0, shown.err
    for line in ("seed: 3", "output_dir: out", "  size: 8", "    limit: 7"):
        assert f"\n{line}\n" in f"\n{shown.out}"
    offered = alignment("run", recipe, "--help").out
    assert "data=few" in offered and "seed=rows" not in offered and "batch=config" not in offered

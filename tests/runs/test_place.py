"""A folder in which a run cannot be, told before anything else is done."""

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.config.run import RunConfig
from alignment.config.sections import ConfigError
from alignment.config.tasks import PipelineConfig, StageConfig
from alignment.runs.place import require_place


def checkpoints_as_a_file(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "checkpoints").touch()


def config_as_a_folder(folder: Path) -> None:
    (folder / "out" / "config.yaml").mkdir(parents=True)


def a_folder_of_runs(folder: Path) -> None:
    for name in ("sft", "dpo"):
        (folder / "out" / name).mkdir(parents=True)
        (folder / "out" / name / "started.json").touch()


CASES: dict[Callable[[Path], None], str] = {
    checkpoints_as_a_file: r"made and written, got 'out', where 'out/checkpoints' is a file",
    config_as_a_folder: r"made and written, got 'out', where 'out/config.yaml' is a folder",
    a_folder_of_runs: r"not be a folder of other runs, as of 'out/dpo'; output_dir=out/NAME is in it too, got 'out'",
}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_what_stands_in_the_way(make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    require_place(RunConfig(output_dir="out"))
    make(tmp_path)
    with pytest.raises(ConfigError, match=rf"^output_dir must .*{CASES[make]}$"):
        require_place(RunConfig(output_dir="out"))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "name a folder, .*, got ''"),
        (" ", "name a folder, .*, got ' '"),
        ("x" * 300, r"be a folder that can be made and written \(File name too long\), got 'xxx"),
    ],
    ids=["no name", "a blank", "300 letters"],
)
def test_what_is_no_name_of_a_folder(name: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"^output_dir must {rule}"):
        require_place(RunConfig(output_dir=name))


def test_a_pipeline_s_folder_is_one_of_runs_and_a_run_s_own_may_hold_another(tmp_path: Path) -> None:
    a_folder_of_runs(tmp_path)
    stage = StageConfig(name="a", recipe="tiny_sft")
    require_place(PipelineConfig(output_dir=str(tmp_path / "out"), stages=[stage]))
    (tmp_path / "out" / "started.json").touch()
    require_place(RunConfig(output_dir=str(tmp_path / "out")))

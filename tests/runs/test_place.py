"""A folder in which a run cannot be, told before anything else is done."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.config.data import DataConfig, EvalSource, TrainSource
from alignment.config.errors import ConfigError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.model import ModelConfig
from alignment.config.run import RunConfig
from alignment.config.supervised import SFTConfig
from alignment.config.tasks import PipelineConfig, StageConfig
from alignment.config.train import TrainConfig
from alignment.runs.folder import RunFolder, step_folder, steps_in
from alignment.runs.lifecycle import as_recipe
from alignment.runs.place import require_place, require_sweep_place


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


def run_of(model: str, rows: str, output_dir: str) -> SFTConfig:
    data = DataConfig(train=TrainSource(rows))
    return SFTConfig(model=ModelConfig(model), data=data, train=TrainConfig(max_steps=1), output_dir=output_dir)


@pytest.mark.parametrize(
    ("model", "rows", "output_dir", "rule"),
    [
        (
            "out/model",
            "rows",
            "out",
            r"where the run would write 'out/model' over model\.path='out/model'; .* got 'out'",
        ),
        ("link", "rows", "../here/out/", r"would write '\.\./here/out/model' over model\.path='link'; .* got"),
        (
            "adapter",
            "rows",
            "out",
            r"would write 'out/best' over the base of model\.path='out/best/base'; .* got 'out'",
        ),
        ("base", "out/selected.jsonl", "out", r"'out/selected\.jsonl' over data\.train\.path='out/selected\.jsonl'; "),
    ],
    ids=["its model", "by a link", "behind an adapter", "its rows"],
)
def test_a_run_does_not_write_where_it_reads(
    model: str, rows: str, output_dir: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in the folder already: here it is that of a run."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("out/model", "out/best/base", "base", "adapter"):
        Path(name).mkdir(parents=True)
    Path("adapter/adapter_config.json").write_text('{"base_model_name_or_path": "out/best/base"}')
    Path("link").symlink_to("out/model")
    for name in ("out/selected.jsonl", "out/started.json", "out/mine.jsonl"):
        Path(name).touch()
    require_place(run_of("base", "out/mine.jsonl", "out"))
    with pytest.raises(ConfigError, match=f"^output_dir must not .*{rule}"):
        require_place(run_of(model, rows, output_dir))


def test_a_run_may_lie_beside_what_it_reads(tmp_path: Path) -> None:
    """An evaluation in the folder of a run that it compares, a run in its base's: neither writes over a file there."""
    run = RunFolder(tmp_path / "run")
    run.model.mkdir(parents=True)
    run.config.touch()
    data = DataConfig(eval=EvalSource("rows"))
    output_dir = str(run.path / "evaluation")
    require_place(EvaluateConfig(runs={"a": str(run.path)}, baseline="a", data=data, gold="a.b", output_dir=output_dir))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    require_place(run_of(str(tmp_path / "base"), "rows", str(tmp_path / "base")))
    with pytest.raises(ConfigError, match=r"it holds 'config.json'; "):  # of a model that is another run's
        require_place(run_of(str(tmp_path / "other"), "rows", str(tmp_path / "base")))


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "samples.jsonl", "report.html", "model"])
def test_what_no_run_has_written_is_not_replaced(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, foreign = RunConfig(output_dir="out"), tmp_path / "out" / name
    if foreign.suffix:
        foreign.parent.mkdir()
        foreign.write_text("seed: 0\n")
    else:
        foreign.mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"^output_dir must not hold what no run .*, as 'out/{name}'; .* got 'out'$"):
        require_place(config)
    (tmp_path / "out" / "started.json").touch()
    require_place(config)


def test_a_config_that_a_run_wrote_is_known_by_its_text(tmp_path: Path) -> None:
    """As a pipeline's, and that of a run whose `started.json` was taken away, after which it goes on."""
    folder = RunFolder(tmp_path)
    stages = [StageConfig(name="a", recipe="tiny_sft", set={"data.template": "one\n\n### 'two' # é", "lr": 1e-5})]
    config = PipelineConfig(output_dir=str(tmp_path), stages=stages)
    written = as_recipe(config)
    folder.config.write_text(written)
    require_place(config)
    for text in (
        f"# mine\n{written}",
        written.replace("  - task: pipeline", "  - task: pipeline\n  - model: tiny"),
        written.replace("seed: 0\n", ""),
        "",
    ):
        folder.config.write_text(text)
        with pytest.raises(ConfigError, match=r"^output_dir must not hold what no run has written"):
            require_place(config)


def test_steps_are_those_whose_folders_have_our_names(tmp_path: Path) -> None:
    """One by another name is the user's own: it can be neither read nor put aside as a step's."""
    for name in ("step-00000003", "step-9", "step-00000012.bad", "step-100000000", "step-x", "step-00000001"):
        (tmp_path / name).mkdir()
    assert [step_folder(tmp_path, step).is_dir() for step in steps_in(tmp_path)] == [True, True, True]
    assert steps_in(tmp_path) == [1, 3, 100_000_000]


@pytest.mark.parametrize("place", [".", "home", "data", "hidden", "linked"])
def test_a_run_does_not_lie_among_the_user_s_files(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = tmp_path / ("data" if place == "linked" else place)
    here.mkdir(exist_ok=True)
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    if place != ".":
        require_place(RunConfig(output_dir=place))  # as long as it is empty
    for name in (".bashrc", "notes.txt")[: 1 if place == "hidden" else 2]:
        (here / name).touch()
    for config in (
        RunConfig(output_dir=place),
        PipelineConfig(output_dir=place, stages=[StageConfig(name="a", recipe="tiny_sft")]),
    ):
        with pytest.raises(ConfigError) as raised:
            require_place(config)
        line = str(raised.value)
        assert line.startswith("output_dir must be a new or an empty folder, or that of a run, for ")
        assert ": it holds '.bashrc'" in line and line.endswith(f", got {place!r}")
        assert f"; output_dir={Path(place, 'NAME')} is a folder of its own in it" in line
    require_place(RunConfig(output_dir=f"{place}/NAME"))
    (here / "started.json").touch()
    require_place(RunConfig(output_dir=place))


def test_what_a_run_leaves_as_it_begins_is_its_own(tmp_path: Path) -> None:
    for name in ("owner.json", "config.yaml.host-7.partial", "submitted.json"):
        (tmp_path / name).touch()
        require_place(RunConfig(output_dir=str(tmp_path)))


def test_a_sweep_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for name in ("0", "11", "logs"):
        (tmp_path / "sweep" / name).mkdir(parents=True)
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra: {}\n")
    require_sweep_place(tmp_path / "sweep", "multirun.yaml")
    require_sweep_place(tmp_path / "new", "multirun.yaml")
    (tmp_path / "sweep" / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"^output_dir must be a new or an empty folder, .*: it holds 'mine.txt'; "):
        require_sweep_place(tmp_path / "sweep", "multirun.yaml")


def test_what_may_not_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a run that is there, and may be finished."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        ConfigError, match=r"written \(Permission denied\), got 'out/a', where '/.*' may not be written$"
    ):
        require_place(RunConfig(output_dir="out/a"))
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match=r"^output_dir must .*written \(Permission denied\), got 'run'$"):
        require_place(RunConfig(output_dir="run"))
    (tmp_path / "run" / "started.json").touch()
    require_place(RunConfig(output_dir="run"))

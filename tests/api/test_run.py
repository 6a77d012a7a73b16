"""`alignment.run`: the command from Python, with rows in memory, and errors that are raised."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import alignment
from alignment.config import BatchConfig, DataConfig, DPOConfig, ModelConfig, TrainConfig, TrainSource
from alignment.losses import DPOLoss

ROWS = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No"} for n in range(8)]
SMALL: dict[str, Any] = {
    "model": {"init": {"hidden_size": 32, "intermediate_size": 48}},
    "train": {"max_steps": 2, "eval_every": 0, "warmup_steps": 0},
    "batch": {"size": 4},
    "log": {"progress": False},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not GlobalHydra.instance().is_initialized()


def rows_in(folder: str) -> list[Path]:
    return sorted(Path(folder, "rows").glob("*.jsonl"))


def test_nothing_heavy_is_imported_until_it_is_asked_for() -> None:
    heavy = "{'torch', 'transformers', 'hydra', 'omegaconf', 'datasets', 'numpy'}"
    code = f"import alignment, sys; alignment.config, alignment.data; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
    with pytest.raises(AttributeError, match=r"alignment has no 'rnu' \(did you mean 'run'\?\)"):
        _ = alignment.rnu  # type: ignore[attr-defined]
    assert "in memory" in str(alignment.run.__doc__)


def test_rows_in_memory_are_one_run_with_their_file_and_no_other() -> None:
    first = alignment.run("tiny_dpo", data=ROWS, eval_data=(row for row in ROWS[:2]), output_dir="out", **SMALL)
    assert [row["step"] for row in first.metrics] == [1, 2] and "eval/loss" in first.metrics[-1]
    assert first.model == Path("out/model") and len(rows_in("out")) == 2
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.safetensors")}
    again = alignment.run("tiny_dpo", data=list(ROWS), eval_data=ROWS[:2], output_dir="out", **SMALL)
    assert again.metrics == first.metrics
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.safetensors")} == before
    with pytest.raises(alignment.ConfigError, match=r"the contents of data\.train\.path changed"):
        alignment.run("tiny_dpo", data=ROWS[:4], eval_data=ROWS[:2], output_dir="out", **SMALL)
    assert len(rows_in("out")) == 2  # those of the refused run are gone
    as_recipe = alignment.run("out/config.yaml")
    assert as_recipe.folder == Path("out") and as_recipe.metrics == first.metrics


def test_a_table_of_datasets_and_a_file_are_rows_too() -> None:
    """What a table has as null because another row has it is no field of the row."""
    table = Dataset.from_list([*({**row, "weight": 2.0} for row in ROWS[:4]), *ROWS[4:]])
    alignment.run("tiny_dpo", data=table, output_dir="table", **SMALL)
    written = [json.loads(line) for line in rows_in("table")[0].read_text().splitlines()]
    assert written[0] == {**ROWS[0], "weight": 2.0} and len(written) == 8
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run = alignment.run("tiny_dpo", data=Path("rows.jsonl"), output_dir="file", **SMALL)
    assert not Path("file/rows").exists() and len(run.metrics) == 2
    with pytest.raises(alignment.ConfigError, match=r"^data must be one split of a DatasetDict.*it has train$"):
        alignment.run("tiny_dpo", data=DatasetDict(train=table), output_dir="splits", **SMALL)


def test_an_interrupted_run_goes_on_to_the_same_bits(interrupted: Callable[..., None]) -> None:
    settings = {**SMALL, "checkpoint": {"every": 1}}
    whole = alignment.run("tiny_dpo", data=ROWS, output_dir="whole", **settings)
    interrupted("tiny_dpo", data=ROWS, output_dir="parts", **settings)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    parts = alignment.run("tiny_dpo", data=ROWS, output_dir="parts", **settings)
    assert whole.model is not None and parts.model is not None
    name = "model.safetensors"
    assert (whole.model / name).read_bytes() == (parts.model / name).read_bytes()


def test_keys_presets_and_dataclasses() -> None:
    run = alignment.run(
        "tiny_dpo",
        {"loss.beta": 0.25, "data": "native", "train.betas": (0.8, 0.9)},
        data=ROWS,
        output_dir="out",
        **{**SMALL, "log": {}, "seed": 3},
    )
    text = (run.folder / "config.yaml").read_text()
    assert "beta: 0.25" in text and "seed: 3" in text and "- 0.8" in text
    run = alignment.run("tiny_dpo", data=ROWS, loss=DPOLoss(variant="ipo"), output_dir="other", **SMALL)  # type: ignore[arg-type]
    assert "variant: ipo" in (run.folder / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"recipe": "tiny_dop"}, "no recipe 'tiny_dop' (did you mean 'tiny_dpo'?); `alignment recipes` lists them"),
        ({"recipe": "nowhere.yaml"}, "no recipe file 'nowhere.yaml'"),
        ({"trian": {}}, "no such key 'trian' (did you mean 'train'?)"),
        ({"loss": {"beta": -1}}, "loss.beta must be"),
        ({"model": "nowhere"}, "model.path: no such file or folder, got 'nowhere'"),
        ({"data": []}, "data must have at least one row, got none"),
        ({"data": [1]}, "data: row 1 must be a dict, got an int"),
        ({"data": ["a", 1]}, "data: row 1 must be a dict, got a str; a DataFrame's are frame.to_dict('records')"),
        ({"eval_data": {"limit": 3}}, "eval_data must be a path, or rows"),
        ({"log": {"progress": object()}}, "log.progress must be a text, a number, true or false"),
        ({"config_dir": "nowhere"}, "config-dir must be a folder, got 'nowhere'"),
    ],
)
def test_a_mistake_is_raised_in_one_line_and_leaves_nothing(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(alignment.ConfigError) as raised:
        alignment.run(**{"recipe": "tiny_dpo", "output_dir": "out", **asked})
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)
    assert not Path("out").exists()


def test_a_bad_row_is_named() -> None:
    with pytest.raises(alignment.UserError, match=r"^data: row 2: field `rejected` is missing"):
        alignment.run("tiny_dpo", data=[ROWS[0], {"prompt": "a", "chosen": "b"}], output_dir="out", **SMALL)
    assert not Path("out").exists()


def test_a_config_in_python_is_a_recipe() -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = DPOConfig(
        model=ModelConfig(init={"model_type": "llama", "hidden_size": 32, "intermediate_size": 48}),
        data=DataConfig(train=TrainSource(path="rows.jsonl")),
        train=TrainConfig(max_steps=1, schedule="linear"),  # type: ignore[arg-type]
        batch=BatchConfig(size=4),
    )
    run = alignment.run(config, {"loss.beta": 0.5})
    assert run.folder.parent == Path("runs/dpo") and "beta: 0.5" in (run.folder / "config.yaml").read_text()
    config.train.learning_rate = "much"  # type: ignore[assignment]
    with pytest.raises(alignment.ConfigError, match="learning_rate must be a number, got 'much'"):
        alignment.run(config)


def test_it_works_in_a_thread_and_beside_another_hydra(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("key: 1\n")
    failed: list[BaseException] = []

    def work() -> None:
        try:
            alignment.run("tiny_dpo", data=ROWS, output_dir="out", **SMALL)
        except BaseException as error:
            failed.append(error)

    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert failed == [] and Path("out/finished.json").exists()
        assert compose("mine").key == 1


def test_stages_of_a_pipeline_are_runs(tmp_path: Path) -> None:
    (tmp_path / "pipe.yaml").write_text(
        "# Two stages\ndefaults: [{task: pipeline}, _self_]\nstages:\n"
        "  - {name: sft, recipe: tiny_sft, set: {train.max_steps: 1, data.train.limit: 8, batch.size: 2,"
        " train.eval_every: 0, train.warmup_steps: 0, data.eval.limit: null}}\n"
    )
    run = alignment.run("pipe.yaml", {"stages.sft.set.seed": 4}, output_dir="out")
    assert run.model is None and run.metrics == [] and [row["step"] for row in run.stages["sft"].metrics] == [1]
    with pytest.raises(alignment.UserError, match="out holds no trained model"):
        run.load()

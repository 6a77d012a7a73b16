"""Evaluations on rows that a model has learned from, as the configs of its runs tell."""

from pathlib import Path

import pytest

from alignment.config.data import DataConfig
from alignment.config.evaluate import EvaluateConfig
from alignment.config.sources import EvalSource
from alignment.tasks.known_rows import warn_of_known_rows


def run_on(folder: Path, train: str, begun: str = "null") -> str:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: {{path: {begun}}}\ndata: {{train: {train}}}\n")
    return str(folder)


def test_files_are_compared_whatever_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    for name in ("a", "b"):
        Path(f"d/{name}.jsonl").write_text('{"prompt": "?"}\n')

    def said(model: str, rows: str = "d/a.jsonl") -> str:
        warn_of_known_rows(EvaluateConfig(output_dir="out", runs={"m": model}, data=DataConfig(eval=EvalSource(rows))))
        return capsys.readouterr().out.replace("\n", " ")

    for number, train in enumerate(
        ("{path: d/a.jsonl}", "{path: 'd/*.jsonl'}", "{path: d}", "{path: d/b.jsonl, join: {more: d/a.jsonl}}",
         "{path: null, mix: {one: {path: d/a.jsonl, weight: 1}}}", "{path: [d/b.jsonl, d/a.jsonl]}")
    ):  # fmt: skip
        known = run_on(tmp_path / f"known{number}", train)
        assert said(known).startswith(f"WARNING: {known} learned from d/a.jsonl"), train
    assert "learned from d/*.jsonl" in said(known, "d/*.jsonl") and "learned from d:" not in said(known)
    assert said(run_on(tmp_path / "other", "{path: d/b.jsonl}")) == ""
    assert "WARNING" in said(run_on(tmp_path / "later", "{path: d/b.jsonl}", begun=f"{known}/model"))
    assert "WARNING" in said(f"{known}/model/adapter")
    for number, train in enumerate(
        ("{path: null, join: d/a.jsonl, mix: [d/a.jsonl]}", "5", "null", "{path: gone.jsonl}")
    ):
        assert said(run_on(tmp_path / f"odd{number}", train)) == ""
    (tmp_path / "odd0" / "config.yaml").write_text("")
    assert said(str(tmp_path / "odd0")) == ""
    (tmp_path / "bare").mkdir()
    assert "what bare learned from is not known here" in said("bare")

import json
from pathlib import Path

import pytest

from alignment.training import samples_log
from alignment.training.samples_log import SamplesLog


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().split("\n") if line]


def test_rows_of_a_resumed_run_are_written_once(tmp_path: Path) -> None:
    """Also where a reply holds what Python, but not JSON, takes for the end of a line; a torn row goes."""
    whole = SamplesLog(tmp_path, done=0)
    for step in (1, 2, 3):
        whole.write(step, "train", [{"reply": f"a\u2028b {step}"}, {"reply": "ü\n"}])
    with whole.path.open("a") as file:
        file.write('{"step": 2, "re')
    resumed = SamplesLog(tmp_path, done=2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 1, 2, 2]
    resumed.write(3, "eval", [{"reply": "c"}])
    assert rows(tmp_path)[2] == {"step": 2, "split": "train", "reply": "a\u2028b 2"}
    assert rows(tmp_path)[-1] == {"step": 3, "split": "eval", "reply": "c"}


def test_replies_before_the_first_step_are_shown_once_however_often_the_run_begins(tmp_path: Path) -> None:
    for reply in ("a", "b"):
        SamplesLog(tmp_path, done=0).write(0, "eval", [{"reply": reply}])
    assert [row["reply"] for row in rows(tmp_path)] == ["b"]


def test_nothing_to_show_leaves_no_file(tmp_path: Path) -> None:
    SamplesLog(tmp_path, done=0).write(1, "train", [])
    assert list(tmp_path.iterdir()) == []


def test_the_main_process_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SamplesLog(tmp_path, done=0).write(1, "train", [{"reply": "a"}])
    monkeypatch.setattr(samples_log, "is_main", lambda: False)
    SamplesLog(tmp_path, done=0).write(1, "train", [{"reply": "b"}])
    assert [row["reply"] for row in rows(tmp_path)] == ["a"]

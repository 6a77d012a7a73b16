"""What a run has noted in its folder: read back, and where it is damaged told by file and line."""

import json
from pathlib import Path

import pytest

from alignment.config.errors import UserError
from alignment.runs.folder import RunFolder, note_step, noted_step
from alignment.runs.notes import read_note

CHANGE = {"changed": "seed", "before": 0, "after": 1, "step": 2}


def test_a_torn_last_line_of_the_history_is_left_out_and_the_next_takes_its_place(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    files.note(**CHANGE)
    with files.history.open("a") as file:
        file.write('{"going_on_fr')
    assert [line["changed"] for line in files.noted()] == ["seed"]
    files.note(going_on_from=2)
    assert [{**line, "time": ""} for line in files.noted()] == [
        {"time": "", **CHANGE},
        {"time": "", "going_on_from": 2},
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"nonsense", "is no JSON"),
        (b"\xff\xfe{}", "is no JSON"),
        (b"[1]", "must be a JSON object, one that tells of a change with changed, before, after, step"),
        (b'{"changed": "seed", "before": 0}', "must be a JSON object, one that tells of a change with"),
    ],
)
def test_a_damaged_line_of_the_history_is_told_by_its_number(line: bytes, why: str, tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    files.history.write_bytes(json.dumps(CHANGE).encode() + b"\n" + line + b"\n{}\n")
    with pytest.raises(UserError) as told:
        files.noted()
    assert str(told.value).startswith(f"{files.history}:2 {why}")
    assert "without the line the run goes on, and what it told is forgotten, got b" in str(told.value)


@pytest.mark.parametrize("content", [b"", b'{"num_st', b"\xff", b"[1]"])
def test_a_damaged_note_is_told_by_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    assert read_note(path) == {}
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"progress\.json (cannot be read|must be a JSON object)"):
        read_note(path)


def test_a_damaged_step_of_weights_is_told_by_its_name(tmp_path: Path) -> None:
    note_step(tmp_path, 12)
    assert noted_step(tmp_path) == 12
    (tmp_path / ".step").write_bytes(b"")
    with pytest.raises(UserError, match=r"\.step must hold the number of a step, got ''; without .* the run goes on$"):
        noted_step(tmp_path)

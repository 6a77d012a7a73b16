"""What evaluations are paired by."""

from pathlib import Path

import pytest

from alignment.config.errors import UserError
from alignment.runs.scores import read_scores, text_id, write_scores


def test_an_id_is_of_the_text_alone() -> None:
    turns = [{"role": "user", "content": "hi"}]
    assert text_id(turns) == text_id([{"content": "hi", "role": "user"}])
    assert len({text_id(turns), text_id(turns, "a"), text_id(turns, "b"), text_id("a", "b"), text_id("ab")}) == 5


def test_what_is_written_is_read_back_without_what_is_not_there(tmp_path: Path) -> None:
    row = {"part": "replies", "method": "a", "id": "x"}
    write_scores(tmp_path / "scores.jsonl", [{**row, "gold": None, "length": 3}, {**row, "length": 4}])
    assert read_scores(tmp_path / "scores.jsonl") == [{**row, "length": 3}, {**row, "id": "x#2", "length": 4}]


@pytest.mark.parametrize("line", ["{", "[]", '{"part": "replies", "method": "a"}'])
def test_another_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"part": "replies", "method": "a", "id": "x"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"scores\.jsonl:2 "):
        read_scores(path)

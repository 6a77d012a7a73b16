"""Files and folders that are there whole or not at all."""

from pathlib import Path

import pytest

from alignment.runs.written import begin_folder, filled_beside, publish_folder, whole_file


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text("old")
    with whole_file(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old" and beside.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_file_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), whole_file(path) as beside:
        beside.write_text("ne\ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_processes_write_one_file_without_meeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that have the same number on two machines."""
    path = tmp_path / "note.json"
    with whole_file(path) as first:
        monkeypatch.setattr("socket.gethostname", lambda: "another")
        with whole_file(path) as second:
            assert first != second
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_a_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "best"
    for content in ("one", "two"):
        beside = begin_folder(folder)
        assert beside == filled_beside(folder) and not any(beside.iterdir())
        (beside / "model").write_text(content)
        (beside / content).touch()
        assert not (folder / content).exists()
        publish_folder(folder)
        assert (folder / "model").read_text() == content
    assert sorted(path.name for path in folder.iterdir()) == ["model", "two"] and list(tmp_path.iterdir()) == [folder]


def test_what_an_earlier_process_did_not_finish_goes(tmp_path: Path) -> None:
    beside = begin_folder(tmp_path / "a" / "model")
    (beside / "half").touch()
    assert not any(begin_folder(tmp_path / "a" / "model").iterdir())

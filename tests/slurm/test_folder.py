"""What a submission writes can be taken back."""

from contextlib import ExitStack
from pathlib import Path

from alignment.runs.folder import RunFolder
from alignment.slurm.folder import job_of, restore_on_error, write_record


def written(folder: Path) -> None:
    RunFolder(folder).logs.mkdir(parents=True, exist_ok=True)
    RunFolder(folder).config.write_text("new")
    write_record(folder, "12_0")


def test_the_job_of_a_folder(tmp_path: Path) -> None:
    assert job_of(tmp_path) is None
    write_record(tmp_path, "12_0")
    assert job_of(tmp_path) == "12_0"


def test_new_folders_go_and_old_files_come_back(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "a" / "b" / "0"
    old.mkdir()
    RunFolder(old).config.write_text("old")
    (old / "metrics.jsonl").write_text("kept")
    with ExitStack() as undo:
        restore_on_error([old, new.parent, new], undo)
        for folder in (old, new):
            written(folder)
        assert job_of(new) == "12_0"
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == {
        Path("old"),
        Path("old/config.yaml"),
        Path("old/metrics.jsonl"),
    }
    assert RunFolder(old).config.read_text() == "old"


def test_what_somebody_else_wrote_meanwhile_stays(tmp_path: Path) -> None:
    with ExitStack() as undo:
        restore_on_error([tmp_path / "new"], undo)
        written(tmp_path / "new")
        (tmp_path / "new" / "metrics.jsonl").write_text("kept")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"metrics.jsonl"}


def test_nothing_is_taken_back_after_success(tmp_path: Path) -> None:
    with ExitStack() as undo:
        restore_on_error([tmp_path / "new"], undo)
        written(tmp_path / "new")
        undo.pop_all()
    assert job_of(tmp_path / "new") == "12_0"

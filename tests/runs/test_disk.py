"""A disk that takes no more: one line that names the file, and nothing half written stays."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from alignment.config.errors import ConfigError, UserError
from alignment.runs.claim import claim
from alignment.runs.disk import naming, told_of_disk
from alignment.runs.folder import RunFolder
from alignment.runs.leftovers import claimed, clearing, present
from alignment.runs.written import whole_file


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO])
def test_a_file_of_the_run_that_is_not_written_is_named(number: int, tmp_path: Path) -> None:
    path, why = tmp_path / "samples.jsonl", f"{os.strerror(number)} ({errno.errorcode[number]})"
    with pytest.raises(UserError) as told, told_of_disk(tmp_path), naming(path):
        raise OSError(number, os.strerror(number))
    assert str(told.value) == f"{path} cannot be written: {why}; what was saved before is kept"


def test_a_file_that_takes_another_s_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    with pytest.raises(UserError, match=rf"^{path} cannot be written"), told_of_disk(tmp_path), whole_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_safetensors_own_error_is_one_of_the_disk(tmp_path: Path) -> None:
    model = tmp_path / "model"
    with pytest.raises(FileNotFoundError, match=rf"'{model}'$"), naming(model):  # by the number in the library's words
        save_file({"weight": torch.zeros(4)}, tmp_path / "missing" / "weights")
    with pytest.raises(UserError) as told, told_of_disk(tmp_path), naming(model):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert str(told.value).startswith(f"{model} cannot be written: No space left on device (ENOSPC)")


@pytest.mark.parametrize(("number", "is_told"), [(errno.ENOSPC, False), (errno.EIO, True)])
def test_a_library_s_thread_that_meets_a_full_disk_prints_nothing(
    number: int, is_told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def write() -> None:
        raise OSError(number, os.strerror(number))

    with told_of_disk(tmp_path):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert bool(told) is is_told and threading.excepthook == told.append


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "RUN/model"),
        OSError(errno.ENOSPC, "No space left on device", "/elsewhere/file"),
        OSError(errno.EIO, "Input/output error"),  # as of data that is read
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        SafetensorError("Error while deserializing header"),
        MemoryError(),
    ],
)
def test_other_errors_go_on_as_they_are(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as met, told_of_disk(tmp_path):
        raise error
    assert met.value is error


def test_what_no_file_is_named_of_may_lie_elsewhere(tmp_path: Path) -> None:
    told = rf"^{tmp_path}, or what its run keeps elsewhere, cannot be written: .* \(ENOSPC\)"
    with pytest.raises(UserError, match=told), told_of_disk(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_on_a_full_disk_is_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    folder = RunFolder(tmp_path / "new" / "run")
    told = r"^output_dir must be a folder that can be made and written \(No space left on device\), got '.*/new/run'$"
    with pytest.raises(ConfigError, match=told), claimed(folder, present(folder)):
        pytest.fail("it is claimed")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=told), claim(folder.path):
        pytest.fail("it is claimed")
    assert list(folder.path.iterdir()) == []


def test_a_run_that_ends_early_leaves_nothing_half_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    halves = [tmp_path / "model.partial", folder.checkpoints / "step-00000002.partial"]
    for path in (*halves, folder.checkpoints / "step-00000001"):
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"1")
    with clearing(folder, present(folder)):
        pass
    assert all(path.is_dir() for path in halves)
    with pytest.raises(MemoryError), clearing(folder, present(folder)):
        raise MemoryError
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000001"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("both", [False, True])
def test_no_work_is_lost_for_a_line_that_is_not_written(both: bool) -> None:
    lines = "import sys; from alignment.terminal import say; say('one'); say('two'); sys.exit(3)"
    with Path("/dev/full").open("w") as full:
        err = full if both else subprocess.PIPE
        ended = subprocess.run([sys.executable, "-c", lines], stdout=full, stderr=err, text=True, check=False)
    told = None if both else "alignment: the standard output cannot be written (No space left on device)\n"
    assert (ended.returncode, ended.stderr) == (3, told)

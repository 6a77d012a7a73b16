"""Checkpoints on their own: what stays, what is never half there, what comes back."""

import errno
import hashlib
import json
import os
import pickle
import random
import threading
from collections.abc import Callable
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignment.config.batch import Layout
from alignment.config.checkpoint import CheckpointConfig, Resume
from alignment.config.errors import ConfigError, UserError
from alignment.data.pack import pack
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.losses import CrossEntropyLoss
from alignment.training import checkpoint, writing
from alignment.training.checkpoint import Checkpoints
from alignment.training.generators import rng_state, seed_everything, set_rng_state
from alignment.training.manifest import Manifest, content_digest, part_name, write_manifest, write_part
from alignment.training.metrics import Pending
from alignment.training.objectives import SFT
from alignment.training.step import train_step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept(descent: Callable[..., TorchEngine], tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(every=2, keep=2), {"model": descent()})
    for step in range(1, 9):
        checkpoints.save_if_due(step)
    assert names(tmp_path / "checkpoints") == ["step-00000006", "step-00000008"]


def test_none_without_every(descent: Callable[..., TorchEngine], tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(every=0), {"model": descent()})
    checkpoints.save_if_due(1)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert checkpoints.restore() == 0


def test_weights_and_generators_come_back(
    descent: Callable[..., TorchEngine], demonstrations: list[Example], tmp_path: Path
) -> None:
    batch = pack(demonstrations, range(6), layout=Layout.shared, pad_id=0)
    engine = descent()
    train_step(engine, SFT(CrossEntropyLoss()), [batch])
    seed_everything(7)
    Checkpoints(tmp_path, CheckpointConfig(), {"model": engine}).save(3)
    drawn = [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]
    other = descent()
    assert Checkpoints(tmp_path, CheckpointConfig(), {"model": other}).restore() == 3
    for a, b in zip(engine.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()] == drawn


def test_gaussians_in_hand_come_back() -> None:
    """numpy and Python draw normal numbers in twos and keep the second."""
    seed_everything(1)
    np.random.normal()
    random.gauss(0, 1)
    state = rng_state()
    drawn = [np.random.normal(), random.gauss(0, 1)]
    set_rng_state(state)
    assert [np.random.normal(), random.gauss(0, 1)] == drawn


def test_the_newest_is_restored(descent: Callable[..., TorchEngine], tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=3), {"model": descent()})
    for step in (9, 10, 100):
        checkpoints.save(step)
    assert checkpoints.restore() == 100


def test_an_unfinished_one_is_not_restored(descent: Callable[..., TorchEngine], tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), {"model": descent()})
    checkpoints.save(2)
    (tmp_path / "step-00000004.partial").mkdir()
    assert checkpoints.restore() == 2
    checkpoints.save(4)
    assert names(tmp_path) == ["step-00000002", "step-00000004"]


def test_a_run_that_never_resumes_starts_over(descent: Callable[..., TorchEngine], tmp_path: Path) -> None:
    """Its own early checkpoints must not be taken for older than those of a longer run before it."""
    Checkpoints(tmp_path, CheckpointConfig(), {"model": descent()}).save(100)
    config = CheckpointConfig(every=1, keep=1, resume=Resume.never)
    checkpoints = Checkpoints(tmp_path, config, {"model": descent()})
    assert checkpoints.restore() == 0
    checkpoints.save_if_due(1)
    assert names(tmp_path) == ["step-00000001"]


def test_weights_of_another_model_are_refused(descent: Callable[..., TorchEngine], tmp_path: Path) -> None:
    Checkpoints(tmp_path, CheckpointConfig(), {"model": descent()}).save(1)
    with pytest.raises(ValueError, match=r"not this model's: hf\."):
        Checkpoints(tmp_path, CheckpointConfig(), {"model": descent("scalar")}).restore()


class Counter:
    """A part that is not an engine."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_anything_with_a_state_comes_back(tmp_path: Path) -> None:
    Checkpoints(tmp_path, CheckpointConfig(), {"counter": Counter(7)}).save(1)
    counter = Counter()
    assert Checkpoints(tmp_path, CheckpointConfig(), {"counter": counter}).restore() == 1
    assert counter.count == 7
    with pytest.raises(ValueError, match=r"is of another kind of run: \['counter'\]"):
        Checkpoints(tmp_path, CheckpointConfig(), {"actor": counter}).restore()


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """A checkpoint whose hashes are right but which holds code is not run."""
    Checkpoints(tmp_path, CheckpointConfig(), {"counter": Counter(Path)}).save(1)  # type: ignore[arg-type]
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        Checkpoints(tmp_path, CheckpointConfig(), {"counter": Counter()}).restore()


def test_the_manifest_tells_sizes_and_hashes(tmp_path: Path) -> None:
    Checkpoints(tmp_path, CheckpointConfig(), {"counter": Counter()}).save(3)
    manifest = json.loads((tmp_path / "step-00000003" / "manifest.json").read_text())
    data = (tmp_path / "step-00000003" / "rank-00000.pt").read_bytes()
    assert manifest["files"] == {"rank-00000.pt": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    assert (manifest["step"], manifest["world_size"], manifest["version"]) == (3, 1, version("preference-alignment"))


def test_the_clock_saves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every_minutes=1.5, keep=9), {"counter": Counter()})
    for step in range(1, 8):
        now[0] += 40  # seconds a step
        checkpoints.save_if_due(step)
    assert names(tmp_path) == ["step-00000003", "step-00000006"]


@pytest.mark.parametrize("save_s", [0.5, 12.0, 60.0])
@pytest.mark.parametrize("step_s", [7.0, 400.0])
def test_the_clock_s_saves_take_no_more_than_a_fiftieth_of_the_time(
    save_s: float, step_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save of t seconds is followed by at least 49 t of work, and by the ten minutes of the default: the first step
    that ends after the longer of the two saves, and two checkpoints stay."""
    now, saved = [1000.0], []

    class Slow(Counter):
        def state(self) -> dict[str, Any]:
            now[0] += save_s
            return Counter.state(self)

    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), {"slow": Slow()})
    for step in range(1, 2001):
        now[0] += step_s
        before = now[0]
        checkpoints.save_if_due(step)
        if now[0] > before:
            saved.append(step)
    first = ceil(600 / step_s)  # when nobody knows how long one takes
    rest = ceil(max(600, 49 * save_s) / step_s)
    assert saved == list(range(first, 2001, rest))
    assert names(tmp_path) == [f"step-{step:08d}" for step in saved[-2:]]
    assert save_s / (save_s + rest * step_s) <= 0.02


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written before it is set."""
    ready, write_part = threading.Event(), writing.write_part

    def waiting(state: dict[str, Any], path: Path) -> Any:
        assert ready.wait(60)
        return write_part(state, path)

    monkeypatch.setattr(writing, "write_part", waiting)
    return ready


class Weights(Counter):
    """A tensor that training changes in its place."""

    def __init__(self) -> None:
        self.tensor = torch.zeros(3)

    def state(self) -> dict[str, Any]:
        return {"of": {"inner": [self.tensor]}}

    def load_state(self, state: dict[str, Any]) -> None:
        self.tensor = state["of"]["inner"][0]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, slow_disk: threading.Event) -> None:
    """What is in it is what was there when it was begun; it is one when it is whole."""
    config, weights = CheckpointConfig(every=2, background=True), Weights()
    checkpoints = Checkpoints(tmp_path, config, {"weights": weights})
    for step in (1, 2, 3):
        weights.tensor += 1
        checkpoints.save_if_due(step)
    assert names(tmp_path) == ["step-00000002.partial"]
    slow_disk.set()
    checkpoints.finish()
    assert names(tmp_path) == ["step-00000002"]
    found = Weights()
    assert Checkpoints(tmp_path, config, {"weights": found}).restore() == 2
    assert found.tensor.tolist() == [2.0] * 3


def test_one_that_is_due_waits_for_the_one_before(tmp_path: Path, slow_disk: threading.Event) -> None:
    config = CheckpointConfig(every=1, keep=3, background=True)
    checkpoints = Checkpoints(tmp_path, config, {"weights": Weights()})
    checkpoints.save_if_due(1)
    threading.Timer(0.2, slow_disk.set).start()
    checkpoints.save_if_due(2)
    assert "step-00000001" in names(tmp_path)
    checkpoints.save_if_due(3, is_last=True)
    assert names(tmp_path) == [f"step-0000000{step}" for step in (1, 2, 3)]


def test_one_that_is_written_is_in_its_place_after_the_next_step(tmp_path: Path) -> None:
    config = CheckpointConfig(every=2, background=True)
    checkpoints = Checkpoints(tmp_path, config, {"weights": Weights()})
    checkpoints.save_if_due(2)
    assert checkpoints.writing is not None
    checkpoints.writing.result()
    checkpoints.save_if_due(3)
    assert names(tmp_path) == ["step-00000002"]


def test_a_disk_that_is_full_is_told_where_it_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: dict[str, Any], path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = CheckpointConfig(every=1, background=True)
    checkpoints = Checkpoints(tmp_path, config, {"weights": Weights()})
    checkpoints.save(1)
    monkeypatch.setattr(writing, "write_part", full)
    checkpoints.save_if_due(2)
    with pytest.raises(UserError, match=r"step-00000002 cannot be written: No space left on device \(ENOSPC\)"):
        checkpoints.save_if_due(3)
    assert names(tmp_path) == ["step-00000001"]


def test_a_disk_that_a_checkpoint_fills_is_told_by_it_whatever_else_it_refuses_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: dict[str, Any], path: Path) -> Any:
        path.write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "write_part", full)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=1, background=True), {"weights": Weights()})
    checkpoints.save_if_due(1)
    told = r"step-00000001 cannot be written: No space left on device \(ENOSPC\); what was saved before is kept$"
    with pytest.raises(UserError, match=told), checkpoints.finished():
        raise OSError(errno.ENOSPC, "No space left on device", "samples.jsonl")
    assert names(tmp_path) == []


@pytest.mark.parametrize("background", [True, False])
def test_what_else_ends_the_writing_of_a_checkpoint_ends_the_run(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(state: dict[str, Any], path: Path) -> Any:
        raise MemoryError("of the checkpoint") from KeyError("its cause")

    monkeypatch.setattr(writing, "write_part", lacking)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=1, background=background), {"weights": Weights()})
    with pytest.raises(MemoryError, match=r"^of the checkpoint$") as met:
        checkpoints.save_if_due(1, is_last=True)
    assert isinstance(met.value.__cause__, KeyError)
    assert any(entry.name == "lacking" for entry in met.traceback)


def test_an_error_of_the_user_s_loses_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=1, background=True), {"weights": Weights()})

    def steps() -> None:
        with checkpoints.finished():
            checkpoints.save_if_due(1)
            raise UserError("later")

    with pytest.raises(UserError, match="later"):
        steps()
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize(("device", "background"), [("cpu", False), ("cuda", True)])
def test_it_is_done_in_the_background_on_a_gpu(device: str, background: bool, tmp_path: Path) -> None:
    made = Checkpoints(tmp_path, CheckpointConfig(), {}, device=torch.device(device))
    assert made.in_background == background


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_damaged_does_not_count_as_newer(tmp_path: Path, keep: int) -> None:
    """Or the next ones saved would be deleted as the oldest."""
    config = CheckpointConfig(every=1, keep=keep)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=1, keep=3), {"counter": Counter()})
    for step in (2, 3, 9):
        checkpoints.save(step)
    (tmp_path / "step-00000009" / "rank-00000.pt").write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, config, {"counter": Counter()})
    assert checkpoints.restore() == 3
    checkpoints.save_if_due(4)
    assert Checkpoints(tmp_path, config, {"counter": Counter()}).restore() == 4
    assert names(tmp_path)[-2:] == ["step-00000004", "step-00000009.bad"]


def saved_by_three(folder: Path, step: int) -> None:
    """As three processes under ZeRO 2 would have saved it, each with a count and a measurement of its own."""
    beside = folder / f"step-{step:08d}"
    beside.mkdir(parents=True)
    files = {}
    for rank in range(3):
        torch.manual_seed(100 + rank)
        parts = {"counter": {"count": step}, "pending": {"loss": [torch.tensor(2.0**rank), torch.tensor(rank + 1)]}}
        state = {"step": step, "parts": parts, "rng": rng_state()}
        files[part_name(rank)] = write_part(state, beside / part_name(rank))
    write_manifest(beside, Manifest(step, 3, 2, files))


def test_one_process_goes_on_from_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What all have alike is the first one's, what each has measured is added up."""
    saved_by_three(tmp_path, 4)
    counter, pending = Counter(), Pending()
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), {"counter": counter, "pending": pending})
    assert checkpoints.restore() == 4
    said = f"going on from {tmp_path / 'step-00000004'} (saved by 3 processes under distributed.zero=2)"
    assert "".join(capsys.readouterr().out.splitlines()) == said
    assert counter.count == 4 and pending.state() == {"loss": [7.0, 6]}
    drawn = torch.rand(3)
    torch.manual_seed(100)
    assert torch.equal(drawn, torch.rand(3))
    checkpoints.save(5)
    again = Checkpoints(tmp_path, CheckpointConfig(), {"counter": Counter(), "pending": Pending()})
    assert again.restore() == 5
    assert capsys.readouterr().out.splitlines()[-1].endswith("step-00000005")


def test_a_part_of_another_process_is_looked_at_too(tmp_path: Path) -> None:
    for step in (4, 5):
        saved_by_three(tmp_path, step)
    (tmp_path / "step-00000005" / "rank-00002.pt").write_bytes(b"")
    assert Checkpoints(tmp_path, CheckpointConfig(), {"counter": Counter(), "pending": Pending()}).restore() == 4


def test_another_stage_is_another_way_to_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Checkpoints(tmp_path, CheckpointConfig(), {"counter": Counter()}).save(1)
    Checkpoints(tmp_path, CheckpointConfig(), {"counter": Counter()}, zero=0).restore()
    said = "".join(capsys.readouterr().out.splitlines())
    assert said.endswith("(saved by 1 process under distributed.zero=null)")


def test_a_manifest_of_another_version_is_skipped(tmp_path: Path) -> None:
    Checkpoints(tmp_path, CheckpointConfig(), {"counter": Counter()}).save(1)
    path = tmp_path / "step-00000001" / "manifest.json"
    content = json.loads(path.read_text())
    del content["zero"], content["sha256"]
    path.write_text(json.dumps({**content, "sha256": content_digest(content)}))
    with pytest.raises(ConfigError, match=r"manifest.json is of another version of this package: it has no 'zero'$"):
        Checkpoints(tmp_path, CheckpointConfig(), {"counter": Counter()}).restore()


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Where the n-th call to the disk fails: the part's sync, the manifest's, the two folders'."""
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=1), {"counter": Counter()})
    checkpoints.save(1)
    calls, fsync = [], os.fsync

    def full(descriptor: int) -> None:
        calls.append(1)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    told = r"step-00000002 cannot be written: No space left on device \(ENOSPC\); what was saved before is kept$"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=told):
            checkpoints.save(2)
    assert "step-00000001" in names(tmp_path) and not any(name.endswith(".partial") for name in names(tmp_path))
    assert Checkpoints(tmp_path, CheckpointConfig(), {"counter": Counter()}).restore() in (1, 2)
    checkpoints.save(3)
    assert names(tmp_path) == ["step-00000003"]


@pytest.mark.parametrize("minutes", [-1.0, float("nan"), float("inf")])
def test_minutes_that_never_come_are_refused(minutes: float) -> None:
    with pytest.raises(ConfigError, match=rf"^checkpoint.every_minutes must be finite and >= 0, got {minutes}$"):
        CheckpointConfig(every_minutes=minutes)

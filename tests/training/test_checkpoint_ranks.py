"""Two processes save together, agree on what to load, and fail together."""

import errno
import io
import os
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
import torch.distributed as dist

from alignment import preempt
from alignment.config.checkpoint import CheckpointConfig
from alignment.config.errors import ConfigError, UserError
from alignment.losses import Mean
from alignment.training import writing
from alignment.training.checkpoint import Checkpoints
from alignment.training.generators import rng_state
from alignment.training.manifest import Manifest, part_name, write_manifest, write_part
from alignment.training.metrics import Metrics, Pending

EVERY = CheckpointConfig(every=2, keep=9)


class Part:
    """Each rank's own number."""

    def __init__(self, number: float) -> None:
        self.tensor = torch.tensor(number)

    def state(self) -> dict[str, Any]:
        return {"tensor": self.tensor}

    def load_state(self, state: dict[str, Any]) -> None:
        self.tensor = state["tensor"]


def restored(folder: Path) -> tuple[int, float]:
    part = Part(-1.0)
    return Checkpoints(folder, EVERY, {"part": part}).restore(), part.tensor.item()


def save_and_restore(rank: int, folder: Path) -> None:
    """Each rank gets its own part and its own random numbers back."""
    torch.manual_seed(rank)
    Checkpoints(folder, EVERY, {"part": Part(10.0 + rank)}).save(1)
    drawn = torch.rand(3)
    assert sorted(path.name for path in (folder / "step-00000001").iterdir()) == [
        "manifest.json",
        "rank-00000.pt",
        "rank-00001.pt",
    ]
    assert restored(folder) == (1, 10.0 + rank)
    assert torch.equal(torch.rand(3), drawn)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    *((f"rank-0000{rank}.pt", Path.unlink, "is missing") for rank in range(2)),
    *((f"rank-0000{rank}.pt", cut, "is cut short") for rank in range(2)),
    *((f"rank-0000{rank}.pt", flip, "has changed since it was written") for rank in range(2)),
    ("manifest.json", Path.unlink, "is missing"),
    ("manifest.json", cut, "cannot be read"),
    ("manifest.json", flip, ""),  # no JSON any more, or not what it was
]


def the_newest_is_damaged(rank: int, folder: Path) -> None:
    """Whatever happened to whosever file, both go back to the checkpoint before, and the main one says why."""
    checkpoints = Checkpoints(folder, EVERY, {"part": Part(0.0)})
    checkpoints.parts = {"part": Part(100.0 + rank)}
    checkpoints.save(1)
    for name, damage, why in DAMAGE:
        Checkpoints(folder, EVERY, {"part": Part(200.0 + rank)}).save(2)
        if rank == 0:
            damage(folder / "step-00000002" / name)
        dist.barrier()
        said = io.StringIO()
        with redirect_stdout(said):
            assert restored(folder) == (1, 100.0 + rank)
        lines = "".join(said.getvalue().splitlines())
        assert (f"step-00000002 is skipped: {name} {why}" in lines) == (rank == 0), lines
        if rank == 0:  # who puts aside, and is the one to begin the next
            assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002.bad"]
    if rank == 0:
        cut(folder / "step-00000001" / "rank-00001.pt")
    dist.barrier()
    with pytest.raises(ConfigError, match=r"got 1 in .* and none is good: rank-00001.pt is cut short"):
        restored(folder)


def others_saved(rank: int, folder: Path) -> None:
    """Three processes did: both go on with what is the same on all, and the main one with what was counted."""
    if rank == 0:
        beside = folder / "step-00000004"
        beside.mkdir(parents=True)
        files = {}
        for number in range(3):
            torch.manual_seed(100 + number)
            parts = {"part": {"tensor": torch.tensor(7.0)}, "pending": {"loss": [torch.tensor(2.0), torch.tensor(1)]}}
            state = {"step": 4, "parts": parts, "rng": rng_state()}
            files[part_name(number)] = write_part(state, beside / part_name(number))
        write_manifest(beside, Manifest(4, 3, 3, files))
    dist.barrier()
    part, pending = Part(-1.0), Pending()
    assert Checkpoints(folder, EVERY, {"part": part, "pending": pending}, zero=3).restore() == 4
    assert part.tensor == 7.0 and pending.state() == {"loss": [6.0, 3] if rank == 0 else [0.0, 0]}
    pending.add(Metrics(loss=Mean(torch.tensor(9.0), torch.tensor(1))).counted_by_main())
    assert pending.take() == {"loss": 15.0 / 4}
    drawn = torch.rand(3)
    torch.manual_seed(100 + rank)
    assert torch.equal(drawn, torch.rand(3))


def one_rank_s_disk_is_full(rank: int, folder: Path) -> None:
    """Both end with that rank's error, and nobody waits for it."""
    checkpoints = Checkpoints(folder, EVERY, {"part": Part(0.0)})
    checkpoints.save(1)
    write_part = writing.write_part

    def full(state: dict[str, Any], path: Path) -> Any:
        if rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_part(state, path)

    writing.write_part = full
    with pytest.raises(UserError, match=r"step-00000002 cannot be written: No space left on device \(ENOSPC\)"):
        checkpoints.save(2)
    dist.barrier()
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001"]


def one_rank_writes_for_longer(rank: int, folder: Path) -> None:
    """In the background: nothing is a checkpoint before the last rank has written its part, and nobody waits for it."""
    ready, write_part = Event(), writing.write_part

    def waiting(state: dict[str, Any], path: Path) -> Any:
        assert rank == 0 or ready.wait(60)
        return write_part(state, path)

    writing.write_part = waiting
    part = Part(float(rank))
    checkpoints = Checkpoints(folder, CheckpointConfig(every=2, keep=9, background=True), {"part": part})
    for step in (2, 3):
        checkpoints.save_if_due(step)
        part.tensor += 10.0
    assert not (folder / "step-00000002").exists()
    ready.set()
    checkpoints.save_if_due(4, is_last=True)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000004"]
    assert restored(folder) == (4, 20.0 + rank)


def one_rank_is_asked_to_stop(rank: int, folder: Path) -> None:
    """Both save the step and stop; the main process's clock, and no other's, has both save."""
    checkpoints = Checkpoints(folder, CheckpointConfig(every_minutes=1.0, keep=9), {"part": Part(0.0)})
    checkpoints.saved_at -= 100.0 if rank == 1 else 0.0
    checkpoints.save_if_due(1)
    checkpoints.saved_at -= 100.0 if rank == 0 else 0.0
    checkpoints.save_if_due(2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002"]
    with preempt.listening(), preempt.one_run():
        if rank == 1:
            os.kill(os.getpid(), preempt.SIGNALS[1])
        said = ["stopped by a signal to another process", "stopped by SIGUSR1"][rank]
        with pytest.raises(preempt.Preempted, match=f"^{said} after step 3, which is saved$"):
            checkpoints.save_if_due(3)
        with pytest.raises(preempt.Preempted, match=f"^{said} before its first step$"):
            checkpoints.restore()


def work(rank: int, check: Callable[[int, Path], None], folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    try:
        check(rank, folder / "checkpoints")
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the other rank may be waiting
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "check",
    [
        save_and_restore,
        the_newest_is_damaged,
        others_saved,
        one_rank_s_disk_is_full,
        one_rank_writes_for_longer,
        one_rank_is_asked_to_stop,
    ],
    ids=lambda check: check.__name__,
)
def test_two_processes(check: Callable[[int, Path], None], tmp_path: Path) -> None:
    processes = [get_context("fork").Process(target=work, args=(rank, check, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]

"""One process at a time writes a run's folder, and says who it is in `owner.json` there.

On one machine the kernel holds the lock and lets it go when its owner dies, however it dies. Where the folder is on a
file system that other machines write to, a lock may reach no further than this machine: there an owner counts as alive
for as long as its file changes. A job that Slurm has put back into the queue does not wait for its former self.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from alignment.config.errors import ConfigError
from alignment.runs.folder import RunFolder
from alignment.terminal import say

BEAT_S = 5.0
LEASE_S = 60.0  # for so long an NFS client may show a file as it was
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of a file system that has none
BOOT = Path("/proc/sys/kernel/random/boot_id")  # another after each start of a machine, the same in its containers


class FolderInUse(ConfigError):
    """Another process writes the folder."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that writes a run's folder."""

    host: str
    boot: str
    """Which machine, since which start of it; empty where the system does not say."""
    pid: int
    since: str
    job: str
    """Slurm's, empty where there is none."""
    restarts: int
    """How often Slurm had put the job back into its queue."""

    def describe(self) -> str:
        return f"process {self.pid} on {self.host}{f' (job {self.job})' if self.job else ''}, since {self.since}"

    def shares_machine(self, other: "Owner") -> bool:
        return (self.boot, "" if self.boot else self.host) == (other.boot, "" if other.boot else other.host)

    def is_requeued(self, earlier: "Owner") -> bool:
        """Whether this is the same job of Slurm, started again, which it is only when the earlier one is over."""
        return bool(self.job) and self.job == earlier.job and self.restarts > earlier.restarts


def this_process() -> Owner:
    return Owner(
        host=socket.gethostname(),
        boot=BOOT.read_text().strip() if BOOT.exists() else "",
        pid=os.getpid(),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        job=os.environ.get("SLURM_JOB_ID", ""),
        restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    )


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, is this process's own in here.

    Raises:
        FolderInUse: another process writes it; says which.
        ConfigError: it cannot be made or written.
    """
    make_folder(folder)
    try:
        descriptor, has_lock = _locked(folder)
        place = os.open(folder, os.O_RDONLY)  # which may be renamed while it is ours
    except OSError as error:
        raise _no_folder(folder, error) from error
    ended = threading.Event()
    try:
        earlier, me = _read(folder), this_process()
        if earlier is not None and _lives(folder, earlier, me, has_lock=has_lock):
            raise _in_use(folder, earlier)
        try:
            _beat(descriptor, me, 0)
        except OSError as error:  # of a full disk
            _remove(place)
            raise _no_folder(folder, error) from error
        thread = threading.Thread(target=_keep_beating, args=(descriptor, me, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            _remove(place)
    finally:
        os.close(place)
        os.close(descriptor)


def require_free(folder: Path) -> None:
    """Raises:
    FolderInUse: a process writes the folder.
    """
    if RunFolder(folder).owner.exists():
        with claim(folder):
            pass


class Life(str, Enum):
    """What is known of the process that says that it writes a folder."""

    running = "running"
    silent = "silent"
    """It is there, but has not said so for a while, as one that was stopped."""
    died = "died"


def life_of(folder: Path) -> tuple[Life, Owner] | None:
    """Who writes the folder, and whether it still does; None: nobody, or one that went in peace. Only reads, so that a
    run that looks at the same moment finds nothing in its way."""
    path = RunFolder(folder).owner
    try:
        quiet_s = time.time() - path.stat().st_mtime
    except OSError:  # gone meanwhile
        return None
    owner = _read(folder)
    if owner is None:
        return None
    here = this_process()
    if (owner.host, owner.boot) != (here.host, here.boot):  # its processes cannot be seen from here
        return Life.running if quiet_s < LEASE_S else Life.died, owner
    if not _is_there(owner.pid):
        return Life.died, owner
    return Life.running if quiet_s < LEASE_S else Life.silent, owner


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(folder, error) from error


def _no_folder(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"output_dir must be a folder that can be made and written ({error.strerror}), got {str(folder)!r}"
    )


def _in_use(folder: Path, owner: Owner | None) -> FolderInUse:
    who = "another process" if owner is None else owner.describe()
    way = "wait for it, end it or give another folder"
    return FolderInUse(f"output_dir is in use by {who}: {way}, got {str(folder)!r}")


def _locked(folder: Path) -> tuple[int, bool]:
    """The open file of the owner, and whether the kernel has locked it for us."""
    while True:
        descriptor = os.open(RunFolder(folder).owner, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            has_lock = lock_file(descriptor)
        except BlockingIOError as error:
            os.close(descriptor)
            raise _in_use(folder, _read(folder)) from error
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(RunFolder(folder).owner)):
                return descriptor, has_lock
        except FileNotFoundError:
            pass  # as below
        os.close(descriptor)  # its owner ended between our two calls, and took the file with it


def lock_file(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _read(folder: Path) -> Owner | None:
    """The owner that the file names; None where it names none, as in the moment in which it is written."""
    noted = _noted(folder)
    try:
        return None if noted is None else Owner(**noted["owner"])
    except (KeyError, TypeError):  # another version's
        return None


def _noted(folder: Path) -> dict[str, Any] | None:
    try:
        noted = json.loads(RunFolder(folder).owner.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return noted if isinstance(noted, dict) else None


def _lives(folder: Path, earlier: Owner, me: Owner, *, has_lock: bool) -> bool:
    """Whether an owner whose file is still there may be at work."""
    if (has_lock and me.shares_machine(earlier)) or me.is_requeued(earlier):
        return False
    say(f"{folder} was left by {earlier.describe()}: {LEASE_S:.0f} seconds to see whether it is still at work")
    before, until = _noted(folder), time.monotonic() + LEASE_S
    while time.monotonic() < until:
        time.sleep(BEAT_S / 2)
        if _noted(folder) != before:
            return True
    return False


def _beat(descriptor: int, me: Owner, number: int) -> None:
    text = json.dumps({"owner": asdict(me), "beat": number}).encode()
    os.ftruncate(descriptor, os.pwrite(descriptor, text, 0))


def _keep_beating(descriptor: int, me: Owner, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(BEAT_S):
        number += 1
        try:
            _beat(descriptor, me, number)
        except OSError:  # a disk that is full or away for a while; the run's own writing says so
            continue


def _remove(place: int) -> None:
    with suppress(FileNotFoundError):  # where the run has left nothing behind, its folder neither
        os.unlink(RunFolder("").owner, dir_fd=place)

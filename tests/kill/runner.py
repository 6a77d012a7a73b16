"""Runs of the command in processes that can be killed. Imports are made once; each run is a fork of this process.

Reads one JSON object a line. Answers with `{"pid": ...}` when the run starts, then with its exit code, negative
for a signal, and the number of touches of files in its folder:

    words   what would be typed after `alignment`; the process works in `folder`
    log     the file that takes what it prints
    at      its n-th touch of a file is where `signal` hits it; null: nowhere
    limit   the largest file that it may write, in bytes; null: any
    env     further variables of its environment

A touch is an open, rename, deletion or new folder within `folder`, every 64 KiB of a checkpoint, and each fsync.
"""

import json
import os
import resource
import signal
import sys
from importlib import import_module
from typing import Any

import torch

from alignment.cli.main import main
from alignment.process import importing
from alignment.training import manifest

with importing():
    for name in ("cli.run", "tasks.pipeline", "tasks.dpo", "tasks.ppo", "training.log"):
        import_module(f"alignment.{name}")

WRITTEN = 2**16  # bytes; or nearly all touches would be writes of the weights
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


class Touches:
    """Counts what the process does to files, and has the signal sent at one of them."""

    def __init__(self, folder: str, at: int | None, number: int) -> None:
        self.folder, self.at, self.number = os.path.realpath(folder), at, number
        self.count = 0

    def touch(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.number)

    def watch(self) -> None:
        write, fsync = manifest.HashedFile.write, os.fsync

        def half_written(hashed: Any, data: bytes) -> int:
            if hashed.size // WRITTEN != (hashed.size + len(data)) // WRITTEN:
                self.touch()
            return write(hashed, data)

        def synced(descriptor: int) -> None:
            self.touch()
            fsync(descriptor)

        manifest.HashedFile.write, os.fsync = half_written, synced
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and isinstance(arguments[0], (str, os.PathLike)):
            if event == "open" and isinstance(arguments[1], str) and "r" in arguments[1]:
                return
            if os.path.realpath(arguments[0]).startswith(self.folder):
                self.touch()


def run(order: dict[str, Any], answer: int) -> None:
    """In the child; never returns."""
    os.chdir(order["folder"])
    os.environ.update(order["env"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    if order["limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    touches = Touches(order["folder"], order["at"], getattr(signal, order["signal"]))
    touches.watch()
    sys.argv = ["alignment", *order["words"]]
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    os.write(answer, str(touches.count).encode())
    os._exit(code)


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            run(order, write)
        os.close(write)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        touched = os.read(read, 64)
        os.close(read)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "touches": int(touched or 0)}), flush=True)


if __name__ == "__main__":
    serve()

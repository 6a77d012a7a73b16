"""Python imports this where its folder is on the path: one rank, or the process that is alone, fails in its third step,
cannot say that it did, starts late, or leaves its group's threads no processor while it has anything to do itself."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

if os.environ.get("RANK", "alone") == os.environ.get("BROKEN_RANK", "none"):
    if os.environ["BROKEN_HOW"] == "starts late":
        time.sleep(15)  # longer than this test's collectives may take

    if "starves" in os.environ["BROKEN_HOW"]:
        from torch import distributed

        def starve() -> None:
            for name in Path("/proc/self/task").glob("*/comm"):
                with suppress(OSError):  # it may be gone by now
                    if name.read_text().startswith("pt_gloo"):
                        os.sched_setscheduler(int(name.parent.name), os.SCHED_IDLE, os.sched_param(0))

        def starved(collective: Any) -> Any:
            def call(*arguments: Any, **more: Any) -> Any:
                starve()
                return collective(*arguments, **more)

            return call

        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        for name in ("barrier", "broadcast", "broadcast_object_list", "all_reduce", "all_gather_object"):
            setattr(distributed, name, starved(getattr(distributed, name)))

    from alignment.training import supervised

    write_text = Path.write_text

    def broken_write_text(path: Path, text: str) -> int:
        if path.parent == Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parent:
            path.touch()
            time.sleep(600)
        return write_text(path, text)

    if os.environ["BROKEN_HOW"] == "cannot say":
        Path.write_text = broken_write_text  # type: ignore[method-assign, assignment]

    train_step, calls = supervised.train_step, []

    def broken_step(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) < 3:
            return train_step(*arguments)
        if os.environ["BROKEN_HOW"] == "killed behind bytes":
            os.write(2, b"\xff is no text\n")
        if os.environ["BROKEN_HOW"].startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ["BROKEN_HOW"] == "hangs":
            time.sleep(600)
        if "raises" in os.environ["BROKEN_HOW"]:
            raise RuntimeError("the third step of this rank")
        return train_step(*arguments)

    supervised.train_step = broken_step

"""Python imports this first where its folder is on the path: one rank then fails in its third step."""

import os
import signal
import time
from typing import Any

if os.environ.get("RANK") == os.environ.get("BROKEN_RANK", "none"):
    from alignment.training import loop

    train_step, calls = loop.train_step, []

    def broken_step(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) < 3:
            return train_step(*arguments)
        if os.environ["BROKEN_HOW"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ["BROKEN_HOW"] == "hangs":
            time.sleep(600)
        raise RuntimeError("the third step of this rank")

    loop.train_step = broken_step

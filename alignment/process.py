"""A process that `launch.processes` started, from its first moment on: it says nothing of its own end, and does not
outlive the command. Needs neither Hydra nor torch, which take seconds to import."""

import os
import signal
import sys
from ctypes import CDLL

LAUNCHED_BY = "ALIGNMENT_LAUNCHED_BY"  # the launcher's process id, in the environment of those that it starts
PR_SET_PDEATHSIG = 1


def is_ours() -> bool:
    """Whether our own launcher started this process, and says how it ended."""
    return LAUNCHED_BY in os.environ


def belong_to_launcher() -> None:
    """End with the launcher, however it ends, and without a word when the user interrupts."""
    if not is_ours():
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[LAUNCHED_BY]):  # it was gone before we could ask
        os._exit(1)

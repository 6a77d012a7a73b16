"""Runs a program that must not outlive who asked for it: `python -I keeper.py NUMBER PROGRAM ...`.

It runs until it ends, or until this process's standard input does. That is a pipe from who asked, and the system closes
it however that one ends, by SIGKILL too. Then the program goes, with all that it has started: vLLM's workers would live
on without it. Needs the standard library only, and nothing of this package.
"""

import os
import signal
import subprocess
import sys
from select import select

POLL_S = 0.2
GRACE_S = 10.0  # between the request to end and the end
LEFT_ALONE = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # a run that hears them decides


def keep(told: int, words: list[str]) -> int:
    """The program's exit code, as a shell has it. told: the file that it writes the program's process id to, for who
    asked, should it be killed itself."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True) as program:
        os.write(told, str(program.pid).encode())
        os.close(told)
        for number in LEFT_ALONE:
            signal.signal(number, signal.SIG_IGN)
        while program.poll() is None:
            if select([0], [], [], POLL_S)[0] and not os.read(0, 1):
                _end(program)
        _signal(program, signal.SIGKILL)  # what it has left of itself
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


def _end(program: "subprocess.Popen[bytes]") -> None:
    _signal(program, signal.SIGTERM)
    try:
        program.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _signal(program, signal.SIGKILL)
        program.wait()


def _signal(program: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """To all of the session that the program leads."""
    try:
        os.killpg(program.pid, number)
    except ProcessLookupError:  # none is left
        return


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2:]))

"""Processes that take turns, each in an environment of its own: whoever does not play waits for a line.

Stdlib alone, and torch beside a GPU, so that TRL's environment can read it too.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

KEEPS_MEMORY = ("env", "MALLOC_TRIM_THRESHOLD_=2147483647", "MALLOC_MMAP_THRESHOLD_=33554432")
"""Before a command: what our runs tell the C library themselves (`keep_freed_memory`), for a trainer that does not."""


class Turns:
    """The contender's side. Made after its imports, before anything else is in memory."""

    def __init__(self, device: str = "cpu") -> None:
        self.said = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print is no answer
        self.memory: Memory = OfGPU() if device == "cuda" else OfProcess()

    def wait(self) -> None:
        """Say that the last turn is over, and wait for the next. After the last one say the peak memory, and end."""
        self.memory.settle()
        print(file=self.said)
        if not sys.stdin.readline():
            print(json.dumps(self.memory.peak()), file=self.said)
            raise SystemExit


class Memory(Protocol):
    def settle(self) -> None:
        """Wait for what is still being computed."""

    def peak(self) -> float:
        """The most bytes that were in use, above those at the beginning."""


class OfProcess:
    """What is resident beside a CPU."""

    def __init__(self) -> None:
        self.before = resident("VmRSS")

    def settle(self) -> None:
        """A CPU is done when it answers."""

    def peak(self) -> float:
        return resident("VmHWM") - self.before


class OfGPU:
    """What torch has allocated on the GPU."""

    def settle(self) -> None:
        import torch

        torch.cuda.synchronize()

    def peak(self) -> float:
        import torch

        return float(torch.cuda.max_memory_allocated())


class Contender:
    """The driver's side."""

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait(self) -> None:
        """Until it is ready to play."""
        self._answer()

    def play(self) -> float:
        """Seconds of one turn."""
        assert self.process.stdin is not None
        start = time.perf_counter()
        print(file=self.process.stdin, flush=True)
        self._answer()
        return time.perf_counter() - start

    def peak(self) -> float:
        """End it; its peak memory in bytes, above what it had after its imports."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        peak = float(json.loads(self._answer()))
        self.process.wait()
        return peak

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}")
        return line


def play_in_turns(
    rounds: Iterable[dict[str, Contender]], turns: int, *, warmup: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Each contender's median seconds of a turn, over `turns` turns of each round after `warmup` of them, and its peak
    memory in bytes, of all rounds. Who plays after whom changes from turn to turn; a round's contenders end with it."""
    taken: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    order = random.Random(0)
    for contenders in rounds:
        for contender in contenders.values():
            contender.wait()
        for turn in range(warmup + turns):
            for whose in order.sample(list(contenders), len(contenders)):
                seconds = contenders[whose].play()
                if turn >= warmup:
                    taken.setdefault(whose, []).append(seconds)
        for whose, contender in contenders.items():
            peaks[whose] = max(contender.peak(), peaks.get(whose, 0.0))
    return {whose: statistics.median(seconds) for whose, seconds in taken.items()}, peaks


def resident(field: str) -> float:
    """Bytes now (VmRSS) or at the most (VmHWM); getrusage's maximum would begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))

"""What a run's time and memory go into: the parts of a step, tokens a second, MFU, the memory of each process."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from alignment.data.pack import PADDING, Batch
from alignment.distributed import sequence
from alignment.distributed.collectives import gathered
from alignment.distributed.device import memory_in_use, peak_flops

GB = 1e9
ASIDE = ("eval", "save")  # parts in which nothing is learned


class StepTimer:
    """Collects between two rows of a log. Its names begin with `time/`: it is what two runs of one seed differ in."""

    def __init__(self, device: torch.device, flops_per_token: float | None = None) -> None:
        """`flops_per_token`: of a step, where it is to say how much of the GPU's peak that is."""
        self.device = device
        self.flops_per_token = flops_per_token
        self.seconds: dict[str, float] = {}
        self.tokens = 0
        self.last = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside, time counts as `time/NAME_s`. Parts end where the device has been waited for; they do not nest."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def count(self, batches: Sequence[Batch]) -> None:
        """The tokens of this process's batches, prompts included and padding not."""
        if sequence.counts():
            self.tokens += sum(int((batch.groups != PADDING).sum()) for batch in batches)

    def take(self) -> dict[str, float]:
        """Since the last row: the seconds of this process's parts and of all, the tokens a second of all processes
        beside evaluations and saves, their share of the GPUs' peak (Chowdhery et al. 2204.02311, app. B, without
        attention), and the memory of each process (GB). All processes call it.
        """
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        found = {"time/step_s": seconds, **{f"time/{name}_s": taken for name, taken in self.seconds.items()}}
        everywhere = gathered((self.tokens, memory_in_use(self.device) / GB))
        if self.tokens:
            learning = max(seconds - sum(self.seconds.get(name, 0.0) for name in ASIDE), 1e-9)
            found["time/tokens_per_s"] = sum(tokens for tokens, _ in everywhere) / learning
            peak = peak_flops(self.device)
            if peak is not None and self.flops_per_token is not None:
                each = found["time/tokens_per_s"] / len(everywhere)
                found["time/mfu"] = each * self.flops_per_token / peak
        found["time/memory_gb"] = max(memory for _, memory in everywhere)
        if len(everywhere) > 1:
            found |= {f"time/memory_gb/rank_{rank}": memory for rank, (_, memory) in enumerate(everywhere)}
        self.seconds, self.tokens = {}, 0
        return {name: float(f"{value:.4g}") for name, value in found.items()}


def step_flops(num_weights: int, num_trained: int) -> float:
    """Of a token: 2 a weight forward, 2 for the gradient of what it read, 2 more for its own where it is trained."""
    return 4.0 * num_weights + 2.0 * num_trained

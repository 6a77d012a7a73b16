"""What is set for a device."""

import platform
import subprocess
import sys

import pytest
import torch

from alignment.distributed import device as module

STEPS = """
import resource
import torch
from alignment.distributed.device import keep_freed_memory

keep_freed_memory(torch.device("cpu"))

def step():
    activations = [torch.ones(2**20) for _ in range(16)]  # 4 MiB each

for _ in range(2):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_what_a_step_on_a_cpu_frees_the_next_one_has() -> None:
    """Of 64 MiB that each of four steps frees the system makes no more than a quarter anew, once. In some processes it
    is so by luck: where something else lies above what is freed."""
    for _ in range(4):
        ended = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
        assert int(ended.stdout) <= 16 * 2**20


def test_beside_a_gpu_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[None] = []
    monkeypatch.setattr(module, "CDLL", asked.append)
    module.keep_freed_memory(torch.device("cuda"))
    assert asked == []
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    module.keep_freed_memory(torch.device("cpu"))
    assert asked == []

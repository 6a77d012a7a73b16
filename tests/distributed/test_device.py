"""What is set for a device."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignment.config.errors import ConfigError
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


def test_on_a_gpu_float32_is_tf32_and_cudnn_plans_no_attention(any_kernels_again: None) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    module.choose_kernels(torch.device("cpu"), deterministic=False)
    assert torch.get_float32_matmul_precision() == "highest" and torch.backends.cuda.cudnn_sdp_enabled()
    module.choose_kernels(torch.device("cuda"), deterministic=False)
    assert torch.get_float32_matmul_precision() == "high" and not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_a_gpu_s_memory_grows_in_place_unless_the_user_has_set_how(
    name: str, any_kernels_again: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.choose_kernels(torch.device("cpu"), deterministic=False)
    assert not any("ALLOC_CONF" in name for name in os.environ)
    module.choose_kernels(torch.device("cuda"), deterministic=False)
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    del os.environ["PYTORCH_CUDA_ALLOC_CONF"]
    monkeypatch.setenv(name, "max_split_size_mb:64")
    module.choose_kernels(torch.device("cuda"), deterministic=False)
    assert [os.environ[each] for each in os.environ if "ALLOC_CONF" in each] == ["max_split_size_mb:64"]


def test_deterministic_kernels_are_asked_for_and_no_longer(any_kernels_again: None) -> None:
    """What has none is an error, but within `any_kernel`."""
    module.choose_kernels(torch.device("cuda"), deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.backends.cudnn.deterministic
    values, places = torch.zeros(2), torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        values.put_(places, torch.ones(2))
    with module.any_kernel():
        values.put_(places, torch.ones(2))
    with pytest.raises(RuntimeError, match="deterministic"):
        values.put_(places, torch.ones(2))
    module.choose_kernels(torch.device("cuda"), deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    values.put_(places, torch.ones(2))


def test_a_cublas_setting_of_the_user_s_stays(any_kernels_again: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    module.choose_kernels(torch.device("cpu"), deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_what_is_free_is_what_the_job_s_limits_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the process's own group and of those above it, the least; files that may be read again are free."""
    monkeypatch.setattr(module, "CGROUPS", tmp_path)
    monkeypatch.setattr(module, "GROUP_OF_PROCESS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    everything = module.free_memory(torch.device("cpu"))
    job = tmp_path / "job"
    (job / "step").mkdir(parents=True)
    (job / "step" / "memory.max").write_text("max\n")
    (job / "step" / "memory.current").write_text("500\n")
    assert module.free_memory(torch.device("cpu")) > everything / 2
    for name, text in (("max", "9000\n"), ("current", "5000\n"), ("stat", "anon 4000\ninactive_file 700\n")):
        (job / f"memory.{name}").write_text(text)
    assert module.free_memory(torch.device("cpu")) == 4700


def test_the_last_gpus_are_a_server_s_and_the_first_the_processes() -> None:
    """Of a node of eight, of one that shows some of its own, by names too."""
    for named, count, processes, last, found in (
        (None, 8, 4, 4, ["4", "5", "6", "7"]),
        (None, 8, 6, 2, ["6", "7"]),
        ("2,3,5", 3, 1, 1, ["5"]),
        ("GPU-a, GPU-b", 2, 1, 1, ["GPU-b"]),
        ("0,1,-1,2", 2, 1, 1, ["1"]),
    ):
        assert module.shared_out(module.visible_gpus(named, count), last, processes) == found
    with pytest.raises(ConfigError, match=r"^launch\.vllm=2 beside 7 of the run's processes needs 9 GPUs here, got 8$"):
        module.shared_out(module.visible_gpus(None, 8), 2, 7)

"""A real vLLM server on this machine's CPU, started on a small policy that knows the toy task a little."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"  # by scripts/vllm.sh
STARTS_IN_S, ENDS_IN_S = 300, 30
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(slots=True)
class Served:
    policy: Path
    """What it was started on."""
    port: int
    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """With the time to take away what it has in the machine's shared memory."""
        self.process.terminate()
        try:
            self.process.wait(ENDS_IN_S)
        except subprocess.TimeoutExpired:
            self.kill()


def run(*words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """The command, in a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "alignment", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    words = ["run", "tiny_sft", "model.init.tie_word_embeddings=false", "train.max_steps=100", "output_dir=sft"]
    ended = run(*words, "log.progress=false", folder=folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "sft" / "model"


@contextmanager
def serving(policy: Path, log: Path, *, port: int = 0) -> Iterator[Served]:
    """At a free port where none is named."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
        port = int(free.getsockname()[1])
    own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment = {**os.environ, **own, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy), "--port", str(port)]
    flags = ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *flags], stdout=file, stderr=file, env=environment, cwd=log.parent, start_new_session=True
        )
    served = Served(policy, port, process)
    try:
        _wait(served, log)
        yield served
    finally:
        if process.poll() is None:
            served.end()


def _wait(served: Served, log: Path) -> None:
    until = time.monotonic() + STARTS_IN_S
    while time.monotonic() < until and served.process.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{served.port}/health", timeout=5).close()
            return
        except (URLError, OSError):
            time.sleep(1)
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def server(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(policy, tmp_path_factory.mktemp("server") / "log.txt") as served:
        yield served

"""Processes that the tests start: ranks with gloo between them."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def _environment(**more: str) -> dict[str, str]:
    """This process's, but for what a launcher would have set, with the checkout to import from."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([*more.pop("PYTHONPATH", "").split(os.pathsep), str(REPOSITORY)]).strip(os.pathsep)
    return {**kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path, **more}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _run_ranks(script: Path, arguments: list[str], *, processes: int, timeout_s: float = 600) -> None:
    """Run a script in as many processes; raises where one of them fails."""
    port = str(_free_port())
    started = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=_environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(processes),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=timeout_s)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)[-4000:]


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., None]:
    return _run_ranks


@pytest.fixture(scope="session")
def environment() -> Callable[..., dict[str, str]]:
    return _environment

"""A vLLM server that the run starts, and that ends with it, however it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import psutil

from alignment.config.cluster import RANKS
from alignment.config.generation import VLLMConfig, VLLMTransfer
from alignment.distributed.device import ALLOCATOR, VISIBLE
from alignment.generation import keeper
from alignment.process import LAUNCHED_BY

OF_START = ("python", "flags")  # what says how a server starts
HOST = "127.0.0.1"
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
OF_LAUNCHERS = ("TORCHELASTIC_", "SLURM_", "SRUN_", "PMI_", "PMIX_")  # how their variables begin
OF_RANKS = (  # who a process of the run is among the others, which a server's own processes would take for theirs
    *(*RANKS, "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    *("TORCH_NCCL_ASYNC_ERROR_HANDLING", LAUNCHED_BY),
)
LAST = 2**17  # bytes of its log in which its error is looked for
ERROR = re.compile(r"\b\w*Error: .+")
ON_CPU = {  # beside a run, unless its user has set them: vLLM alone would pin its threads and have 92% of the memory
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB for keys and values
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What the run wants of its server."""

    model: Path
    """Whose config the server is built by. Its weights are not read: they come before the first replies."""
    tokenizer: Path
    trusted: bool
    dtype: str
    longest: int
    """Tokens of a prompt and its reply."""
    gpus: Sequence[str]
    """As CUDA_VISIBLE_DEVICES names them; none: it is on a CPU."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What the run has in place of the model's own config."""


@dataclass(slots=True)
class LaunchedVLLM(VLLMConfig):
    """Where such a server listens."""

    log: str = ""
    """The file of what it says."""
    keeper: int = 0
    """The process that keeps it, a child of this one; 0: this process has not started it."""
    name: str = ""
    """What it calls its model, and no other server does; "": this process has not started it."""

    def has_ended(self) -> bool:
        """As far as this process can know."""
        if not self.keeper:
            return False
        try:
            return bool(psutil.Process(self.keeper).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def why(self) -> str:
        """Its last word on a cause, and where all of them are."""
        try:
            with Path(self.log).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LAST))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:  # another process has told already, and has cleared what the run had begun
            return f"its log, {self.log}, is gone with the run's folder"
        said = [line for line in text.splitlines() if " WARNING " not in line]
        errors = [found[0] for line in said if (found := ERROR.search(line)) is not None]
        causes = [error for error in errors if "above" not in error] or errors  # its front end says: see above
        return f"{causes[-1][:300]} ({self.log})" if causes else f"its log is {self.log}"


def words(config: VLLMConfig, asked: Asked, port: int) -> list[str]:
    """Its command."""
    python = sys.executable if config.python is None else os.path.expanduser(config.python)
    given = {
        "model": asked.model,
        "tokenizer": asked.tokenizer,
        "host": HOST,
        "port": port,
        "dtype": asked.dtype,
        "max-model-len": asked.longest,
        "load-format": "dummy",
        "logprobs-mode": "processed_logprobs",
        "tensor-parallel-size": max(1, len(asked.gpus)),
    }
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    if config.sleep:
        flags.append("--enable-sleep-mode")
    if config.transfer is VLLMTransfer.nccl:
        flags += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
    if asked.trusted:
        flags.append("--trust-remote-code")
    overrides = dict(asked.config)
    if not asked.gpus:
        # There a tied head would stay as it was, compiling takes minutes, and a prompt that is read in two parts has
        # vLLM turn back its seed's generator, which a CPU's cannot: the engine dies of it.
        overrides |= UNTIED
        flags += ["--enforce-eager", "--no-enable-chunked-prefill"]
    if overrides:
        flags += ["--hf-overrides", json.dumps(overrides)]
    return [python, "-m", "vllm.entrypoints.openai.api_server", *flags, "--disable-uvicorn-access-log", *config.flags]


def environment(config: VLLMConfig, asked: Asked, own: Mapping[str, str]) -> dict[str, str]:
    """This process's, but for what is meant for it alone: its rank, and how torch is to keep a GPU's memory, which is
    for training. Another Python has its packages elsewhere."""
    left_out = {*ALLOCATOR, *OF_RANKS, *(() if config.python is None else ("PYTHONPATH", "PYTHONHOME"))}
    kept = {name: value for name, value in own.items() if name not in left_out and not name.startswith(OF_LAUNCHERS)}
    defaults = {"VLLM_NO_USAGE_STATS": "1"} | ({} if asked.gpus else ON_CPU)
    gpus = {VISIBLE: ",".join(asked.gpus)} if asked.gpus else {}
    return {**defaults, **kept, **gpus, "VLLM_SERVER_DEV_MODE": "1"}


@contextmanager
def launched(config: VLLMConfig, asked: Asked, log: Path) -> Iterator[LaunchedVLLM]:
    """Starts it, and does not wait for it to be up. It has ended when this is left."""
    port, name = config.port or _free_port(), f"policy-{uuid.uuid4().hex}"
    log.parent.mkdir(exist_ok=True)
    told, tells = os.pipe()  # the server's process id
    with log.open("ab") as file, os.fdopen(tells, "wb"):
        command = [sys.executable, "-I", str(keeper.__file__), str(tells)]
        process = subprocess.Popen(
            [*command, *words(config, asked, port), "--served-model-name", name],
            pass_fds=[tells],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=environment(config, asked, os.environ),
            start_new_session=True,  # a user's Ctrl-C is for the run
        )
    assert process.stdin is not None
    with os.fdopen(told) as pids:
        try:
            yield replace(at(config, port, log, process.pid), name=name)
        finally:
            process.stdin.close()
            if process.wait() < 0:  # killed, as for memory: it has ended nothing
                _end(pids.read())


def _end(pid: str) -> None:
    """All of the session that this process leads."""
    with suppress(ProcessLookupError):
        if pid:
            os.killpg(int(pid), signal.SIGKILL)


def at(config: VLLMConfig, port: int, log: Path, keeper: int) -> LaunchedVLLM:
    return LaunchedVLLM(**asdict(config) | {"host": HOST, "port": port, "log": str(log), "keeper": keeper})


def apart(server: VLLMConfig) -> VLLMConfig:
    """The same server for a process that did not start it: without what says how."""
    own = asdict(server)
    return VLLMConfig(**{each.name: own[each.name] for each in fields(VLLMConfig) if each.name not in OF_START})


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])

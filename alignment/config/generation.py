"""How replies are generated, and by whom."""

import math
import re
from dataclasses import dataclass, field
from enum import Enum

from alignment.config.base import Config
from alignment.config.distributed import DistributedConfig
from alignment.config.errors import require
from alignment.config.launch import LaunchConfig
from alignment.config.model import ModelConfig
from alignment.config.soft_prompt import KEY as SOFT_PROMPT

GROUP_PORT = 51216  # trl's
PORT = 8000  # vLLM's
LONGEST_S = 365 * 24 * 60 * 60  # a socket's timeout takes no more than some centuries
HOST = r"[\w-]{1,63}(\.[\w-]{1,63})*\.?"  # of labels, none of them empty
HERE = ("localhost", "127.0.0.1")
GIVEN = (  # options of the server that a run which starts it gives itself
    *("model", "tokenizer", "trust-remote-code", "host", "port", "dtype", "max-model-len", "load-format"),
    *("logprobs-mode", "tensor-parallel-size", "hf-overrides", "enable-sleep-mode", "weight-transfer-config"),
    *("served-model-name",),
)


class Gather(str, Enum):
    """What ZeRO 3 makes whole on each process while it replies."""

    model = "model"
    """All of the model, once for all replies."""
    layer = "layer"
    """One layer after the other, and again for every token: in the room of a layer, and far slower."""


class Generation(str, Enum):
    """What makes replies."""

    transformers = "transformers"
    """In this process."""
    vllm = "vllm"
    """A server to which the weights are pushed."""


class VLLMTransfer(str, Enum):
    """How the weights come to the server, before a rollout and when they have changed."""

    files = "files"
    """The main process writes them, the server reads them: from any number of processes, under any ZeRO stage."""
    nccl = "nccl"
    """From GPU to GPU: the main process, which gathers them one by one, is in a group with the server."""


@dataclass(slots=True)
class VLLMConfig(Config):
    """A vLLM server: where it listens; and of one that the run starts (launch.vllm), how."""

    host: str = "localhost"
    """The machine that the server runs on."""
    port: int | None = None
    """Where it listens. Null: at 8000; one that the run starts (launch.vllm) at a free port."""
    transfer: VLLMTransfer = VLLMTransfer.files
    """How the weights come to it."""
    folder: str | None = None
    """files: where they are written, and taken away again: a folder that this machine and the server's share. Null:
    this machine's memory (/dev/shm)."""
    group_port: int = GROUP_PORT
    """nccl: where the weights go over: the port of the group that this process and the server form."""
    timeout_s: float = 300.0
    """How long to wait for the server to be up."""
    request_timeout_s: float = 1500.0
    """How long one request to the server that is up may stay without an answer, after which the run ends. With more
    processes it is best below distributed.timeout_minutes, which the others wait for the one that asks."""
    sleep: bool = False
    """Whether the server sleeps but for a rollout and leaves its GPUs, which may be those of the processes, to the run.
    One that is started apart needs --enable-sleep-mode. Never run so far: it needs a GPU."""
    python: str | None = None
    """launch.vllm: the Python that has vLLM, such as /opt/vllm/bin/python. Null: the run's own."""
    flags: list[str] = field(default_factory=list)
    """launch.vllm: further options of the server, as [--gpu-memory-utilization=0.8]."""

    def __post_init__(self) -> None:
        for name, port in (("port", self.port), ("group_port", self.group_port)):
            require(port is None or 0 < port < 2**16, f"generation.vllm.{name} must be in [1, 65535]", port)
        require(self.timeout_s >= 0, "generation.vllm.timeout_s must be >= 0", self.timeout_s)
        rule = f"generation.vllm.request_timeout_s must be > 0, and {LONGEST_S} s at the most"
        require(0 < self.request_timeout_s <= LONGEST_S, rule, self.request_timeout_s)
        is_files = self.transfer is VLLMTransfer.files
        require(is_files or self.folder is None, "generation.vllm.folder goes with transfer=files", self.folder)
        require(
            not is_files or self.group_port == GROUP_PORT,
            "generation.vllm.group_port goes with transfer=nccl",
            self.group_port,
        )
        rule = "generation.vllm.host must be a machine's name or IPv4 address, without a port"
        require(re.fullmatch(HOST, self.host) is not None, rule, self.host)
        here = self.host in HERE
        rule = "generation.vllm.folder must be a folder that both machines share where the server is on another"
        require(not is_files or here or self.folder is not None, rule, self.folder)
        for flag in self.flags:
            name = flag.removeprefix("--").partition("=")[0]
            rule = "generation.vllm.flags must not hold what the run gives its server itself"
            require(not (flag.startswith("--") and name.replace("_", "-") in GIVEN), rule, flag)

    def at(self) -> str:
        """The address of one that is started apart."""
        return f"{self.host}:{self.port or PORT}"


@dataclass(slots=True)
class GenerationConfig(Config):
    max_new_tokens: int = 256
    """Tokens after which a reply is cut."""
    temperature: float = 1.0
    """What the logits are divided by before a token is drawn."""
    top_k: int = 0
    """Draw among the k likeliest tokens; 1: always the likeliest (greedy); 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that have this probability together; 1: among all."""
    min_new_tokens: int = 0
    """No end token before these many."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a reply: its tokens keep the string, its text is cut before it."""
    batch_size: int = 256
    """Replies generated at the same time. Samples do not depend on it."""
    engine: Generation = Generation.transformers
    """Who replies."""
    gather: Gather = Gather.model
    """What ZeRO 3 makes whole on each process while it replies."""
    compile: bool = False
    """Whether a GPU's step of a token is compiled (torch.compile, as CUDA graphs), with keys and values in one place:
    prompts are padded to a power of two, and replies that have ended are computed until the last has. Never run so far:
    it needs a GPU."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)

    def __post_init__(self) -> None:
        require(self.max_new_tokens > 0, "generation.max_new_tokens must be > 0", self.max_new_tokens)
        require(0 < self.temperature < math.inf, "generation.temperature must be > 0 and finite", self.temperature)
        require(self.top_k >= 0, "generation.top_k must be >= 0 (0: off)", self.top_k)
        require(0 < self.top_p <= 1, "generation.top_p must be in (0, 1]", self.top_p)
        rule = "generation.min_new_tokens must be in [0, generation.max_new_tokens]"
        require(0 <= self.min_new_tokens <= self.max_new_tokens, rule, self.min_new_tokens)
        require(all(self.stop), "generation.stop must not hold an empty string", self.stop)
        require(self.batch_size > 0, "generation.batch_size must be > 0", self.batch_size)
        is_vllm = self.engine is Generation.vllm
        require(is_vllm or self.vllm == VLLMConfig(), "generation.vllm needs generation.engine=vllm", self.vllm)
        rule = "generation.compile needs generation.engine=transformers: a server compiles by itself"
        require(not (is_vllm and self.compile), rule, self.compile)
        rule = (
            "generation.min_new_tokens must be 0 with generation.stop under vLLM, which would hold back the strings too"
        )
        require(not (is_vllm and self.stop and self.min_new_tokens), rule, self.min_new_tokens)


def require_launch(generation: GenerationConfig, launch: LaunchConfig, *, num_nodes: int) -> None:
    """Raise `ConfigError` where the run is to start a server that it could not use, or to be told how to start none."""
    vllm, gpus = generation.vllm, launch.vllm
    require(gpus == 0 or generation.engine is Generation.vllm, "launch.vllm needs generation.engine=vllm", gpus)
    for name, value, unset in (("python", vllm.python, None), ("flags", vllm.flags, [])):
        rule = f"generation.vllm.{name} goes with launch.vllm > 0, a server that the run starts"
        require(gpus > 0 or value == unset, rule, value)
    rule = "generation.vllm.host must be this machine with launch.vllm, which starts the server there"
    require(gpus == 0 or vllm.host in HERE, rule, vllm.host)
    rule = "generation.vllm.transfer must be files with launch.vllm and sleep: NCCL has no group of a GPU with itself"
    require(gpus == 0 or not vllm.sleep or vllm.transfer is VLLMTransfer.files, rule, vllm.transfer)
    rule = "launch.vllm must be 0 with cluster.nodes > 1: start the server apart (generation.vllm.host)"
    require(gpus == 0 or num_nodes == 1, rule, gpus)


def require_generator(generation: GenerationConfig, distributed: DistributedConfig) -> None:
    """Raise `ConfigError` where the weights are not placed as the generator wants them."""
    rule = "generation.gather=layer needs distributed.zero=3"
    require(generation.gather is Gather.model or distributed.zero == 3, rule, distributed.zero)
    rule = "generation.compile must be false with distributed.zero=3, whose calls at each layer are in no graph"
    require(not (generation.compile and distributed.zero == 3), rule, generation.compile)


def require_gpu(generation: GenerationConfig, device: str) -> None:
    """Raise `ConfigError` where the weights are on a device of another type than the server takes them from."""
    rule = "generation.vllm.transfer=nccl needs distributed.device=cuda"
    way = "generation.vllm.transfer=files needs no GPU"
    require(generation.vllm.transfer is VLLMTransfer.files or device == "cuda", f"{rule} ({way})", device)
    rule = "generation.compile needs distributed.device=cuda: on a CPU nothing is compiled, and it takes longer"
    require(not generation.compile or device == "cuda", rule, generation.compile)
    rule = "generation.vllm.sleep needs distributed.device=cuda, whose memory it leaves to the run"
    require(not generation.vllm.sleep or device == "cuda", rule, device)


def require_served(generation: GenerationConfig, model: ModelConfig) -> None:
    """Raise `ConfigError` where the generator cannot reply as the model would: its server has another vocabulary, or no
    soft prompt."""
    rule = "model.resize_embeddings must be false with generation.engine=vllm, whose server has the folder's vocabulary"
    require(generation.engine is not Generation.vllm or not model.resize_embeddings, rule, model.resize_embeddings)
    rule = f"{SOFT_PROMPT} must be 0 with generation.{{}}"
    is_plain = not model.has_soft_prompt
    why = "engine=vllm, whose server has the weights of the base alone"
    require(is_plain or generation.engine is not Generation.vllm, rule.format(why), model.soft_prompt.tokens)
    why = "compile=true, whose steps are compiled without it"
    require(is_plain or not generation.compile, rule.format(why), model.soft_prompt.tokens)


def require_temperatures(temperatures: list[float], num_samples: int, generation: GenerationConfig) -> None:
    """As many replies at each, which takes the place of generation.temperature."""
    positive = all(0 < each < math.inf for each in temperatures)
    require(
        positive and len(set(temperatures)) == len(temperatures),
        "temperatures must be > 0, and each another",
        temperatures,
    )
    rule = f"num_samples must be a multiple of the number of temperatures ({len(temperatures)})"
    require(num_samples % len(temperatures) == 0, rule, num_samples)
    rule = "generation.temperature must be left at 1 with temperatures, which take its place"
    require(generation.temperature == 1, rule, generation.temperature)

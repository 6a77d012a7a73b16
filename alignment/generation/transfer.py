"""How the policy's weights come to a vLLM server."""

import json
import os
import platform
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from alignment.config.errors import ConfigError
from alignment.config.generation import PORT, VLLMConfig
from alignment.distributed.collectives import barrier, from_main, is_main
from alignment.generation.launched import UNTIED
from alignment.generation.server import ServedModel, Server, ServerError
from alignment.models.adapters import merged_state, merged_weights, plain_name
from alignment.models.heads import LanguageModel
from alignment.models.save import share, write_weights

if TYPE_CHECKING:
    from trl.generation.vllm_client import VLLMClient

SHARED_MEMORY = Path("/dev/shm")
HEAD = "lm_head.weight"
UNTIE = f"--hf-overrides '{json.dumps(UNTIED)}'"


class Transfer(Protocol):
    def push(self, model: LanguageModel) -> None:
        """All weights, an adapter's merged into its layer's; the server replies with them from here on. All processes
        call it together."""
        ...


@dataclass(frozen=True, slots=True)
class FileTransfer:
    """Through files that the main process writes and the server reads: in this machine's memory, or on a file system
    that both share. Weights that are sharded are gathered one by one, and only the main process keeps them."""

    server: Server
    folder: str | None
    served: ServedModel

    def push(self, model: LanguageModel) -> None:
        """Raises:
        ServerError: the server is gone or cannot take them; on all processes.
        """
        state = merged_state(model.hf, model.placement, dtype=model.saved_in, keep=is_main())
        failed = from_main(self._send(model, state) if is_main() else None)
        if failed is not None:
            raise ServerError(failed)

    def _send(self, model: LanguageModel, state: dict[str, torch.Tensor]) -> str | None:
        """Why they are not there, if they are not."""
        prefix, where = f"{_begin()}-{os.getpid()}-", Path(self.folder or SHARED_MEMORY).absolute()
        try:
            with tempfile.TemporaryDirectory(prefix=prefix, dir=where) as name:  # the server may run elsewhere
                folder = Path(name)
                write_weights(model.hf, state, folder, model.saved_in)
                if self.served.is_untied and is_tied(model):  # a weight of its own there, which these files leave out
                    save_file({HEAD: state[HEAD].detach().cpu().clone()}, folder / "head.safetensors")
                    share([folder / "head.safetensors"], folder / "config.json")
                os.chmod(folder, 0o755)  # the server may be another user's
                self.server.load(folder)
        except ServerError as error:
            return str(error)
        except (OSError, SafetensorError) as error:
            rule = "generation.vllm.folder must be a folder with room for the model's weights"
            return f"{rule}, got {str(where)!r} ({error})"
        return None


@dataclass(frozen=True, slots=True)
class NCCLTransfer:
    """From GPU to GPU through trl's client, which the main process has. Never run so far: it needs two GPUs."""

    client: "VLLMClient | None"
    device: torch.device
    """From where they are sent."""

    @torch.no_grad()
    def push(self, model: LanguageModel) -> None:
        """Under the names of Hugging Face form. One weight at a time, gathered and merged where it lies: once for its
        shape, which the server is told before, and once to be sent."""
        names = {plain_name(name) for name, _ in model.hf.named_parameters() if ".lora_" not in name}
        dtype = model.saved_in  # as the server read them from their folder
        word = str(dtype).removeprefix("torch.")
        weights = merged_weights(model.hf, model.placement)  # which the processes that share them gather together
        metadata = [(name, word, list(weight.shape)) for name, weight in weights if name in names]
        weights = merged_weights(model.hf, model.placement)
        sent = ((name, weight.detach().to(self.device, dtype)) for name, weight in weights if name in names)
        if self.client is not None:
            self.client.update_named_params(metadata, sent)
            self.client.reset_prefix_cache()  # keys and values of the old weights
        else:
            for _ in weights:
                pass
        barrier()  # none asks for replies before


def is_tied(model: LanguageModel) -> bool:
    """Whether its head is its embeddings."""
    return bool(model.hf.config.get_text_config().tie_word_embeddings)


def file_transfer(server: Server, config: VLLMConfig, served: ServedModel, model: LanguageModel) -> FileTransfer:
    """Raises:
    ConfigError: there is no folder for the files, or the server would keep a head of before.
    """
    rule = "generation.vllm.folder must be a folder that this machine and the server's share"
    if config.folder is not None and not Path(config.folder).is_dir():
        raise ConfigError(f"{rule}, got {config.folder!r}, which is none")
    if config.folder is None and not SHARED_MEMORY.is_dir():
        raise ConfigError(f"{rule}: this machine has no {SHARED_MEMORY}")
    if served.on_cpu and is_tied(model) and not served.is_untied:
        what = "a vLLM server on a CPU keeps a head that is tied to the embeddings as it was at its start"
        raise ConfigError(
            f"generation.engine=vllm: {what}: start it with {UNTIE}, on a folder whose weights have {HEAD} too"
        )
    if is_main():
        _remove_left(SHARED_MEMORY if config.folder is None else Path(config.folder))
    return FileTransfer(server, config.folder, served)


def _begin() -> str:
    """How the names of folders begin that this machine's runs write weights into."""
    return f"weights-{platform.node()}"


def _remove_left(folder: Path) -> None:
    """Weights of this user's runs on this machine that were killed while they pushed: as large as a model, in a folder
    that may be memory."""
    for left in folder.glob(f"{_begin()}-*"):
        named = re.fullmatch(rf"{re.escape(_begin())}-(\d+)-[^-]+", left.name)  # not "NODE-2", another machine
        with suppress(FileNotFoundError):  # another run has just removed it
            if named and left.stat().st_uid == os.getuid() and not psutil.pid_exists(int(named[1])):
                shutil.rmtree(left)


def nccl_transfer(config: VLLMConfig, device: torch.device) -> NCCLTransfer:
    """With the group over which the weights will go, that of the main process and the server's.

    Raises:
        ConfigError: a package or a GPU is not there, or the server has no group; on all processes.
    """
    if device.type != "cuda":
        rule = "generation.vllm.transfer=nccl needs distributed.device=cuda"
        raise ConfigError(f"{rule}, got {device.type!r}; generation.vllm.transfer=files needs none")
    client = _joined(config, device) if is_main() else None
    failed = from_main(client if isinstance(client, ConfigError) else None)
    if failed is not None:
        raise failed
    assert not isinstance(client, ConfigError)
    return NCCLTransfer(client, device)


def _joined(config: VLLMConfig, device: torch.device) -> "VLLMClient | ConfigError":
    """A client whose group it is in, or why there is none."""
    extra = "generation.vllm.transfer=nccl needs the extra `vllm`: pip install 'preference-alignment[vllm]'"
    try:
        from trl.generation.vllm_client import VLLMClient  # not above: it imports vllm where there is one

        client = VLLMClient(
            host=config.host,
            server_port=config.port or PORT,
            group_port=config.group_port,
            connection_timeout=config.timeout_s,
        )
        client.init_communicator(device)
    except ImportError as error:
        return ConfigError(f"{extra} ({error})")
    except (OSError, RuntimeError) as error:  # it is not there, or was started without what this needs
        rule = "generation.vllm.host and port must be a vLLM server's"
        return ConfigError(f"{rule}, got {config.at()!r} ({error})")
    return client

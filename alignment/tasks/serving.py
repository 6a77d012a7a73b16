"""The vLLM server of a run that starts one (launch.vllm): up while the run is, and no longer."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from alignment.config.errors import ConfigError, UserError, require
from alignment.config.evaluate import EvaluateConfig
from alignment.config.folders import find_model
from alignment.config.generation import VLLMConfig
from alignment.config.model import ModelConfig
from alignment.config.online import OnlineConfig
from alignment.config.run import RunConfig
from alignment.config.saved_prompt import tokens_before
from alignment.config.tasks import RejectionConfig
from alignment.distributed import collectives
from alignment.distributed.device import gpus_apart
from alignment.distributed.precision import precision_of
from alignment.generation.launched import Asked, apart, at, launched
from alignment.generation.server import ServerError
from alignment.models.init import config_of, unscaled_config
from alignment.models.positions import max_positions
from alignment.models.rope import overrides
from alignment.models.tokenizer import tokenizer_folder
from alignment.runs.folder import RunFolder
from alignment.tasks.compared import model_config
from alignment.terminal import say

Run = TypeVar("Run", bound=RunConfig)
Replying = OnlineConfig | RejectionConfig | EvaluateConfig


@contextmanager
def serving(config: Run, folder: RunFolder) -> Iterator[Run]:
    """Inside, the server is up or about to be, and the config that comes names it; the config as it is where the run
    starts none. All processes together: the main one has started it, and it ends with that one.

    Raises:
        ConfigError: the server cannot be had beside the run's processes here.
    """
    if not config.launch.vllm or not isinstance(config, Replying):
        yield config
        return
    asked, own = asked_of(config), config.generation.vllm
    if not collectives.is_main():
        port = collectives.from_main(0)
        yield _told(config, at(own, port, folder.server_log, 0))
        return
    is_new = not folder.server_log.exists()
    with launched(own, asked, folder.server_log) as server:
        collectives.from_main(server.port)
        where = f"GPU {', '.join(asked.gpus)}" if asked.gpus else "the CPU"
        say(f"vLLM: a server starts on {where}, which takes a minute or more; its log is {folder.server_log}")
        try:
            yield _told(config, server)
        except ServerError:
            raise
        except UserError:  # with which it has nothing to do
            if is_new:
                _leave_nothing(folder)
            raise


@contextmanager
def served_apart(config: Run, folder: RunFolder) -> Iterator[Run]:
    """The same for this one process, with a config that would not start a server of its own again."""
    with serving(config, folder) as served:
        if isinstance(served, Replying) and config.launch.vllm:
            generation = replace(served.generation, vllm=apart(served.generation.vllm))
            served = replace(served, launch=replace(config.launch, vllm=0), generation=generation)
        yield served


def asked_of(config: Replying) -> Asked:
    """What the run wants of its server.

    Raises:
        ConfigError: the model has no folder, or there are not so many GPUs.
    """
    hosts = collectives.gathered(socket.gethostname())
    rule = "launch.vllm must be 0 for processes on several machines: start the server apart (generation.vllm.host)"
    require(len(set(hosts)) == 1, rule, config.launch.vllm)
    is_cpu = collectives.pick_device(config.distributed.device).type == "cpu"
    require(not is_cpu or config.launch.vllm == 1, "launch.vllm must be 1 on a CPU", config.launch.vllm)
    model = policy_of(config)
    if model.path is None:
        raise ConfigError("launch.vllm needs model.path, whose config the server is built by, got null")
    rule = f"launch.vllm must be 0 for model {model.path!r}, whose soft prompt a server does not read"
    require(tokens_before(model) == 0, rule, config.launch.vllm)
    hf_config = config_of(model)
    limit = max_positions(hf_config).limit
    longest = config.data.max_prompt_length + config.generation.max_new_tokens
    apart = 0 if config.generation.vllm.sleep else max(len(hosts), config.launch.processes)
    return Asked(
        model=find_model(model.path, "model.path", trusted=model.trust_remote_code).path.absolute(),
        tokenizer=Path(tokenizer_folder(model)).absolute(),
        trusted=model.trust_remote_code,
        dtype=precision_of(config.distributed).value,
        longest=longest if limit is None else min(longest, limit),
        gpus=[] if is_cpu else gpus_apart(config.launch.vllm, apart),
        config=overrides(hf_config, unscaled_config(model)),
    )


def policy_of(config: Replying) -> ModelConfig:
    """Who replies; of an evaluation the baseline, by whose shape all of them must be."""
    if isinstance(config, EvaluateConfig):
        return model_config(config.runs[config.baseline], trusted=config.trust_remote_code)
    return config.model


def _told(config: Run, server: VLLMConfig) -> Run:
    assert isinstance(config, Replying)
    return replace(config, generation=replace(config.generation, vllm=server))


def _leave_nothing(folder: RunFolder) -> None:
    folder.server_log.unlink()
    with suppress(OSError):  # a submission's logs lie there too
        folder.logs.rmdir()

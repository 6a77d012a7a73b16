"""Replies from a vLLM server, to which the weights are pushed before a rollout where they are others than it has.

The run starts the server (`launched.py`), or somebody has, on the policy's folder:

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --max-model-len 2048

On a CPU both are run by the tests marked `vllm`. Its draws are seeded for each prompt by seed and key, but they are its
own: never those of `TransformersGenerator`. The same seeds give the same replies only as far as its kernels compute the
same in batches of other sizes, and on most devices they do not: a run that replies through vLLM and is resumed goes on
from exact weights, optimizer and data, to replies that may be others.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool  # whose threads nobody waits for that leaves early, as by Ctrl-C
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.config.distributed import DistributedConfig
from alignment.config.errors import UserError
from alignment.config.generation import Generation, GenerationConfig, VLLMTransfer
from alignment.config.model import ModelConfig
from alignment.distributed.collectives import barrier, from_main, gathered, is_main, pick_device
from alignment.distributed.engine import Engine
from alignment.distributed.frozen import FrozenEngine
from alignment.generation.generate import Generated, Reply, end_ids, reply_of
from alignment.generation.launched import LaunchedVLLM
from alignment.generation.server import PROCESSED, Completion, Server, ServerError
from alignment.generation.transfer import Transfer, file_transfer, nccl_transfer
from alignment.models.heads import LanguageModel
from alignment.models.init import config_of, unscaled_config
from alignment.models.rope import overrides
from alignment.terminal import progress, say


@dataclass(slots=True)
class Pushed:
    """Which weights a server has of a generator's model."""

    version: int | None = None
    """As the model counts them. None: none so far."""
    start: str = ""
    """Of the server, which has none of them once it has been started again."""


@dataclass(frozen=True, slots=True)
class VLLMGenerator:
    """Samples on a server. `generation.batch_size` bounds the replies that a process asks for at the same time."""

    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    config: GenerationConfig
    server: Server
    transfer: Transfer
    longest: int
    """Tokens of a prompt and its reply that the server takes."""
    keeps_logprobs: bool
    """Whether the server's log-probs are of the distribution that the trainer's are of."""
    pushed: Pushed = field(default_factory=Pushed)
    """With other settings (`replace`) it is the same server still, and has the same weights."""

    def reading(self, engine: Engine | FrozenEngine) -> AbstractContextManager[None]:
        """As they lie: they are read one after the other, and nothing is computed with them here but an adapter's
        product, which is float32's."""
        return engine.partitioned()

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        *,
        keys: Sequence[int],
        replies: int,
        seed: int,
        describe: str | None = None,
    ) -> Generated:
        """A request a prompt, for each has a seed of its own. `computed` are the replies' tokens: the server batches
        continuously, no row of its goes on after its end.

        Raises:
            UserError: a prompt leaves no room for its reply on the server.
            ServerError: the server is gone or answers otherwise; on all processes.
        """
        assert len(keys) == len(prompts)
        self._require_room(prompts)
        sleeps = self.config.vllm.sleep
        if sleeps and is_main():  # for whom the others wait in `push`
            self.server.wake_up()
        self.push()
        ends = end_ids(self.model.hf, self.tokenizer)
        vocabulary = self.model.hf.config.get_text_config().vocab_size

        def ask(place: int) -> list[Reply]:
            sampling = self._sampling(replies, _seed(seed, keys[place]), ends)
            before = int(prompts[place][-1])
            completions = self.server.complete(prompts[place].tolist(), sampling, vocabulary)
            return [self._reply(each, ends, before) for each in completions]

        at_once = max(1, min(len(prompts), self.config.batch_size // replies))
        failed: ServerError | None = None
        sampled: list[list[Reply]] = []
        with ThreadPool(at_once) as threads:
            asked = [threads.apply_async(ask, (place,)) for place in range(len(prompts))]
            try:
                sampled += [each.get() for each in (asked if describe is None else progress(asked, describe))]
            except ServerError as error:
                failed = error
        _require_all_answered(failed)
        if sleeps:
            _send_to_sleep(self.server)
        return Generated(sampled, sum(len(reply.ids) for row in sampled for reply in row))

    def push(self) -> None:
        """The weights, unless the server has them: another rollout of the same ones, as of an evaluation, sends none.

        Raises:
            ServerError: the server is gone or cannot take them; on all processes.
        """
        start = from_main(_asked(self.server) if is_main() else "")
        if isinstance(start, UserError):
            raise start
        has = Pushed(self.model.version, start)
        if has != self.pushed:
            self.transfer.push(self.model)
            self.pushed.version, self.pushed.start = has.version, has.start

    def _require_room(self, prompts: Sequence[np.ndarray]) -> None:
        needed = max((len(prompt) for prompt in prompts), default=0) + self.config.max_new_tokens
        if needed > self.longest:
            rule = f"prompts and generation.max_new_tokens together must be <= the server's {self.longest} tokens"
            is_own = isinstance(self.config.vllm, LaunchedVLLM)  # then these are the model's positions
            way = "" if is_own else f": start it with --max-model-len {needed}"
            raise UserError(f"{rule}, got {needed}{way}")

    def _sampling(self, replies: int, seed: int, ends: list[int]) -> dict[str, Any]:
        """All that shapes a draw: what a request leaves open the server takes from the model's generation config."""
        config = self.config
        sampling: dict[str, Any] = {
            "n": replies,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": config.max_new_tokens,
            "min_tokens": config.min_new_tokens,
            "stop_token_ids": ends,
            "seed": seed,
        }
        return sampling | ({"stop": list(config.stop)} if config.stop else {})

    def _reply(self, completion: Completion, ends: list[int], before: int) -> Reply:
        """How it ended is told from its last token, or from a stop string in its text."""
        ids = np.array(completion.ids, dtype=np.int32)
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        by_token = len(ids) > 0 and int(ids[-1]) in ends
        by_string = [] if by_token else [string for string in self.config.stop if string in text]
        logprobs = np.array(completion.logprobs, dtype=np.float32) if self.keeps_logprobs else None
        return reply_of(
            ids, self.tokenizer, before=before, by_token=by_token, by_string=by_string, drawn_logprobs=logprobs
        )


def say_scaling(model: ModelConfig, config: GenerationConfig) -> None:
    """How a server that the run has not started is to turn positions, which it says nothing of itself."""
    is_apart = config.engine is Generation.vllm and not isinstance(config.vllm, LaunchedVLLM)
    if is_apart and (asked := overrides(config_of(model), unscaled_config(model))):
        way = f"--hf-overrides '{json.dumps(asked)}'"
        say(f"WARNING: model.rope: the server of generation.vllm must turn positions as the policy does, by {way}")


def build_vllm(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig, distributed: DistributedConfig
) -> VLLMGenerator:
    """Raises:
    ConfigError: the server is not there, or was started without what this needs.
    """
    server = Server(config.vllm)
    served = server.connect()
    if config.vllm.sleep:
        _send_to_sleep(server)
    transfer: Transfer
    if config.vllm.transfer is VLLMTransfer.nccl:
        transfer = nccl_transfer(config.vllm, pick_device(distributed.device))
    else:
        transfer = file_transfer(server, config.vllm, served, model)
    is_whole = config.top_k == 0 and config.top_p == 1 and config.min_new_tokens == 0
    is_known = is_whole and (config.temperature == 1 or served.logprobs_mode == PROCESSED)
    if not is_known:
        way = (
            f"a server started with --logprobs-mode {PROCESSED}, top_k=0, top_p=1 and min_new_tokens=0 have it measured"
        )
        say(f"generation: the server's log-probs are not those of the draws, so generation/mismatch is left out; {way}")
    return VLLMGenerator(model, tokenizer, config, server, transfer, served.longest, keeps_logprobs=is_known)


def _require_all_answered(failed: ServerError | None) -> None:
    """Called by all processes, for the first that ended would take a server of the run's own with it, and others would
    tell of that.

    Raises:
        ServerError: of the first process whose requests were not answered.
    """
    for error in gathered(failed):
        if error is not None:
            raise error


def _asked(server: Server) -> str | UserError:
    try:
        return server.served().start
    except UserError as error:
        return error


def _send_to_sleep(server: Server) -> None:
    """When no process has a request under way; when this returns its memory is free."""
    barrier()
    if is_main():
        server.sleep()
    barrier()


def _seed(seed: int, key: int) -> int:
    """62 bits: vLLM counts on from a prompt's seed for its further replies, within 63."""
    return int(np.random.SeedSequence(seed, spawn_key=(key,)).generate_state(1, np.uint64)[0] >> np.uint64(2))

"""Replies from a vLLM server, through trl's client; the weights are pushed to it before each rollout.

Never run against a real server so far: there was no GPU to run one on. What is tested is what goes through trl's client
and how its answers are read. The server is started apart, on the policy's folder:

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --weight-transfer-config '{"backend": "nccl"}'

Its draws are seeded for each prompt by seed and key, but they are its own: never those of `TransformersGenerator`, and
the same again only as far as its kernels are.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.errors import ConfigError
from alignment.config.generation import GenerationConfig, VLLMConfig, require_gpu
from alignment.config.packages import how_to_install
from alignment.generation.generate import Generated, Reply, end_ids, reply_of
from alignment.models.adapters import merged_state
from alignment.models.heads import LanguageModel
from alignment.terminal import progress

if TYPE_CHECKING:
    from trl.generation.vllm_client import VLLMClient


def connected(config: VLLMConfig, device: torch.device) -> "VLLMClient":
    """A client of the server, which is waited for, with the group over which the weights will go.

    Raises:
        ConfigError: a package, the server or a GPU is not there.
    """
    require_gpu(device.type)
    extra = f"generation.engine=vllm needs the extra `vllm`: {how_to_install('vllm')}"
    try:
        from trl.generation.vllm_client import VLLMClient  # not above: it imports vllm where there is one

        client = VLLMClient(
            host=config.host,
            server_port=config.port,
            group_port=config.group_port,
            connection_timeout=config.timeout_s,
        )
        client.init_communicator(device)
    except ImportError as error:
        raise ConfigError(f"{extra} ({error})") from error
    except (OSError, RuntimeError) as error:  # it is not there, or was started without what this needs
        where = f"{config.host}:{config.port}"
        raise ConfigError(f"generation.vllm.host and port must be a vLLM server's, got {where!r} ({error})") from error
    return client


@dataclass(frozen=True, slots=True)
class VLLMGenerator:
    """Samples on a server. `generation.batch_size` bounds the replies asked for at the same time."""

    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    config: GenerationConfig
    client: "VLLMClient"

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
        continuously, no row of its goes on after its end."""
        push_weights(self.model, self.client)
        ends = end_ids(self.model.hf, self.tokenizer)

        def ask(place: int) -> list[Reply]:
            answer = self.client.generate(
                [prompts[place].tolist()],
                n=replies,
                temperature=self.config.temperature,
                top_p=self.config.top_p,
                top_k=self.config.top_k,
                max_tokens=self.config.max_new_tokens,
                logprobs=None,
                generation_kwargs=self._more(_seed(seed, keys[place]), ends),
            )
            before = int(prompts[place][-1])
            return [self._reply(np.array(ids, dtype=np.int32), ends, before) for ids in answer["completion_ids"]]

        assert len(keys) == len(prompts)
        with ThreadPoolExecutor(max(1, self.config.batch_size // replies)) as threads:
            asked = [threads.submit(ask, place) for place in range(len(prompts))]
            sampled = [each.result() for each in (asked if describe is None else progress(asked, describe))]
        return Generated(sampled, sum(len(reply.ids) for row in sampled for reply in row))

    def _more(self, seed: int, ends: list[int]) -> dict[str, Any]:
        """What vLLM's request takes and the client has no argument for."""
        more: dict[str, Any] = {"seed": seed, "stop_token_ids": ends, "min_tokens": self.config.min_new_tokens}
        return more | ({"stop": list(self.config.stop)} if self.config.stop else {})

    def _reply(self, ids: np.ndarray, ends: list[int], before: int) -> Reply:
        """The client does not pass on why a reply ended: its last token, or a stop string in its text, tells."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        by_token = len(ids) > 0 and int(ids[-1]) in ends
        by_string = [] if by_token else [string for string in self.config.stop if string in text]
        return reply_of(ids, self.tokenizer, before=before, by_token=by_token, by_string=by_string)


def push_weights(model: LanguageModel, client: "VLLMClient") -> None:
    """All weights, an adapter's merged into its layer's, under the names of Hugging Face form."""
    device = next(model.parameters()).device
    state = merged_state(model.hf, model.placement)
    names = [name.replace(".base_layer.", ".") for name, _ in model.hf.named_parameters() if ".lora_" not in name]
    dtype = model.saved_in  # as the server read them from their folder
    metadata = [(name, str(dtype).removeprefix("torch."), list(state[name].shape)) for name in names]
    client.update_named_params(metadata, ((name, state[name].to(device, dtype)) for name in names))
    client.reset_prefix_cache()  # keys and values of the old weights


def _seed(seed: int, key: int) -> int:
    """62 bits: vLLM counts on from a prompt's seed for its further replies, within 63."""
    return int(np.random.SeedSequence(seed, spawn_key=(key,)).generate_state(1, np.uint64)[0] >> np.uint64(2))

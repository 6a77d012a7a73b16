"""trl's own client in front of a server that is made up here: it answers what `vllm serve` would, in one process."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.generation.vllm_client import VLLMClient

from alignment.config.errors import ConfigError
from alignment.config.generation import Generation, GenerationConfig, VLLMConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.generation.vllm import VLLMGenerator, connected
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model

PROMPTS = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 1, 2)]
EOS, OTHER_END = 2, 9


class Server(VLLMClient):
    """The client with its wire cut: what it posts is kept, what it is sent of weights too."""

    def __init__(self, answers: dict[tuple[int, ...], list[list[int]]]) -> None:
        self.base_url, self.model, self._updating_weights = "http://server", "policy", False
        self.answers = answers  # prompt -> the ids of its replies
        self.requests: list[dict[str, Any]] = []
        self.weights: dict[str, Tensor] = {}
        self.log: list[str] = []

    def _post(self, url: str, **kwargs: Any) -> dict[str, Any]:
        self.log.append(url.removeprefix("http://server/"))
        request = kwargs["json"]
        self.requests.append(request)
        (prompt,) = request["prompt"]
        replies = self.answers[tuple(prompt)]
        assert request["n"] == len(replies)
        return {"choices": [{"prompt_token_ids": prompt, "token_ids": ids, "logprobs": None} for ids in replies]}

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, Tensor]]
    ) -> None:
        self.log.append("weights")
        for (name, dtype, shape), (sent, tensor) in zip(metadata, named_params, strict=True):
            assert (sent, str(tensor.dtype), list(tensor.shape)) == (name, f"torch.{dtype}", shape)
            self.weights[name] = tensor

    def reset_prefix_cache(self) -> None:
        self.log.append("reset")


ANSWERS = {
    (5, 6, 7): [[20, 21, EOS], [20, 21, 22]],  # ended, cut
    (5,): [[6, 7, 8], [OTHER_END]],  # by the stop string '"#', by the model's own end
    (5, 6): [[30, 31], [33, EOS]],
}


@pytest.fixture
def model(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    torch.manual_seed(0)
    model = load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    config: Any = model.hf.generation_config
    config.eos_token_id = [EOS, OTHER_END]
    return model


def drawn(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0, **settings: Any
) -> tuple[Any, Server]:
    server = Server(ANSWERS)
    config = GenerationConfig(max_new_tokens=3, engine=Generation.vllm, **settings)
    generator = VLLMGenerator(model, tokenizer, config, server)
    return generator.generate(PROMPTS, keys=[4, 5, 6], replies=2, seed=seed), server


def test_answers_become_replies_in_the_order_of_the_prompts(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    generated, _ = drawn(model, tokenizer, stop=['"#'])
    ids = [[reply.ids.tolist() for reply in row] for row in generated.replies]
    assert ids == [ANSWERS[tuple(prompt.tolist())] for prompt in PROMPTS]
    assert [[reply.finished for reply in row] for row in generated.replies] == [
        [True, False],
        [True, True],
        [False, True],
    ]
    assert generated.replies[1][0].text == "!"
    assert generated.replies[0][0].text == tokenizer.decode([20, 21]).strip()
    assert generated.replies[0][0].ids.dtype == np.int32
    assert generated.computed == 3 + 3 + 3 + 1 + 2 + 2


def test_every_setting_reaches_the_server(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    _, server = drawn(model, tokenizer, temperature=0.7, top_k=5, top_p=0.9, stop=["x", "y"])
    wanted = {
        "n": 2,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": 3,
        "min_tokens": 0,
        "stop": ["x", "y"],
        "stop_token_ids": [EOS, OTHER_END],
        "return_token_ids": True,
    }
    assert len(server.requests) == 3
    for request in server.requests:
        assert {name: request[name] for name in wanted} == wanted
    _, server = drawn(model, tokenizer, min_new_tokens=2)
    assert all(request["min_tokens"] == 2 and "stop" not in request for request in server.requests)


def test_each_prompt_has_a_seed_of_its_own(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    def seeds(seed: int) -> dict[int, int]:
        _, server = drawn(model, tokenizer, seed)
        return {len(request["prompt"][0]): request["seed"] for request in server.requests}

    assert seeds(1) == seeds(1)
    everything = [*seeds(1).values(), *seeds(2).values()]
    assert len(set(everything)) == 6 and all(0 <= seed < 2**62 for seed in everything)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_weights_are_pushed_before_each_rollout(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rank: int
) -> None:
    """Under the names of a model without an adapter; loaded there, they make the same logits."""
    torch.manual_seed(0)
    settings = ModelConfig(init=tiny_init, lora=LoraConfig(rank=rank))
    model = load_language_model(settings, tokenizer, WHOLE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    _, server = drawn(model, tokenizer)
    assert server.log == ["weights", "reset", *["v1/completions"] * 3]
    there = load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    assert there.hf.load_state_dict(server.weights, strict=True)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(there.hf(input_ids=ids).logits, model.hf(input_ids=ids).logits)


def test_no_gpu_no_package_no_server_are_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^generation.engine=vllm needs distributed.device=cuda .* got 'cpu'$"):
        connected(VLLMConfig(), torch.device("cpu"))

    def fails(error: Exception) -> Any:
        def start(self: VLLMClient, **settings: Any) -> None:
            assert settings == {"host": "h", "server_port": 1, "group_port": 2, "connection_timeout": 3.0}
            raise error

        return start

    config = VLLMConfig(host="h", port=1, group_port=2, timeout_s=3.0)
    for error, message in (
        (ImportError("vLLM is not installed."), r"^generation.engine=vllm needs the extra `vllm`: pip .*not installed"),
        (OSError("refused"), r"^generation.vllm.host and port must be a vLLM server's, got 'h:1' \(refused\)$"),
        (
            RuntimeError("no weight-transfer engine"),
            r"^generation.vllm.host and port .* \(no weight-transfer engine\)$",
        ),
    ):
        monkeypatch.setattr(VLLMClient, "__init__", fails(error))
        with pytest.raises(ConfigError, match=message):
            connected(config, torch.device("cuda"))


def test_what_the_server_cannot_do_alike_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^generation.min_new_tokens must be 0 with generation.stop under vLLM"):
        GenerationConfig(engine=Generation.vllm, min_new_tokens=1, stop=["x"])
    with pytest.raises(ConfigError, match=r"^generation.vllm needs generation.engine=vllm"):
        GenerationConfig(vllm=VLLMConfig(port=1))

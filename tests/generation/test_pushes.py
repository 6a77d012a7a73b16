"""Which weights a vLLM server replies with, by a stand-in that loads what is pushed to it and replies greedily."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.distributed import DistributedConfig
from alignment.config.generation import Generation, GenerationConfig, VLLMConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.generation.generate import TransformersGenerator
from alignment.generation.vllm import build_vllm
from alignment.losses import CrossEntropyLoss, LossOutput, Mean
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model
from alignment.rl.moving_average import MovingAverage
from alignment.training.nonfinite import NonFiniteStep
from alignment.training.objectives import SFT
from alignment.training.step import train_step
from tests.generation.test_vllm import StandIn

PROMPTS = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 1, 2)]
NEW = 6


@dataclass(slots=True)
class Broken(SFT):
    """A step with no finite loss, which is left out."""

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        output = SFT.__call__(self, model, batch)
        return replace(output, loss=Mean(output.loss.total * math.nan, output.loss.count))


class Replying(StandIn):
    """It knows no more of the trainer's weights than it was sent."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.longest = 64

    def said(self, route: str, content: Any) -> Any:
        if route != "v1/completions":
            found = super().said(route, content)
            if route == "collective_rpc":
                weights = {"lm_head.weight": self.weights.get("model.embed_tokens.weight"), **self.weights}
                self.model.hf.load_state_dict(weights)
            return found
        (ids,), ends = content["prompt"], content["stop_token_ids"]
        drawn: list[int] = []
        while len(drawn) < content["max_tokens"] and (not drawn or drawn[-1] not in ends):
            with torch.no_grad():
                drawn.append(int(self.model.hf(input_ids=torch.tensor([ids + drawn])).logits[0, -1].argmax()))
        return {"choices": [{"token_ids": drawn, "logprobs": {"token_logprobs": [0.0] * len(drawn)}}]}

    def pushes(self) -> int:
        return self.log.count("collective_rpc")


Load = Callable[[int], LanguageModel]


@pytest.fixture
def load(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Load:
    def loaded(rank: int) -> LanguageModel:
        torch.manual_seed(0)
        return load_language_model(ModelConfig(init=tiny_init, lora=LoraConfig(rank=rank)), tokenizer, WHOLE)

    return loaded


@pytest.fixture
def served(load: Load) -> Iterator[Replying]:
    server = Replying(load(0))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("rank", [0, 4])
def test_replies_are_of_the_weights_of_the_moment_which_are_sent_once(
    load: Load,
    served: Replying,
    tokenizer: PreTrainedTokenizerBase,
    engine_of: Callable[[LanguageModel], TorchEngine],
    demonstrations: list[Example],
    rank: int,
    tmp_path: Path,
) -> None:
    model = load(rank)
    engine, average = engine_of(model), MovingAverage(model, 0.5)
    vllm = VLLMConfig(host="127.0.0.1", port=served.server_port, timeout_s=0, folder=str(tmp_path))
    config = GenerationConfig(max_new_tokens=NEW, top_k=1, engine=Generation.vllm, vllm=vllm)
    theirs = build_vllm(model, tokenizer, config, DistributedConfig())
    ours = TransformersGenerator(model, tokenizer, GenerationConfig(max_new_tokens=NEW, top_k=1))
    batch = pack(demonstrations, range(len(demonstrations)), layout=Layout.shared, pad_id=0)
    seen: list[Any] = []

    def replied() -> None:
        for seed in range(2):  # the second time with nothing sent
            both = [each.generate(PROMPTS, keys=[0, 1, 2], replies=1, seed=seed) for each in (theirs, ours)]
            found, own = ([reply.ids.tolist() for (reply,) in each.replies] for each in both)
            assert found == own
        seen.append(found)

    replied()
    assert served.pushes() == 1
    for pushes in (2, 3):
        train_step(engine, SFT(CrossEntropyLoss()), [batch])
        replied()
        assert served.pushes() == pushes
    left_out: list[NonFiniteStep] = []
    train_step(engine, Broken(CrossEntropyLoss()), [batch], left_out.append)
    replied()
    assert served.pushes() == 3 and left_out
    assert seen[0] != seen[1] != seen[2] == seen[3]
    with average.in_place():
        replied()
    assert served.pushes() == 4 and seen[4] == seen[0]
    replied()
    assert served.pushes() == 5 and seen[5] == seen[2]
    served.start = "another"
    served.model.hf.load_state_dict(load(0).hf.state_dict())
    replied()
    assert served.pushes() == 6

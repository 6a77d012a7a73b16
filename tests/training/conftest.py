"""A tiny model in an engine, and a few rows of random tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR
from transformers import PreTrainedTokenizerBase

from alignment.config.enums import Device
from alignment.config.sections import DistributedConfig, ModelConfig
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, load_scalar_model

SHAPES = [(6, 5, 9), (3, 4, 2), (8, 6, 3), (1, 1, 7), (4, 10, 10), (5, 2, 1)]  # prompt, chosen, rejected
MARGINS = [3.0, 0.0, 1.0, 2.0, 1.0, 0.5]


@pytest.fixture(scope="session")
def pairs() -> list[Example]:
    rng = np.random.default_rng(0)
    rows = []
    for shape, margin in zip(SHAPES, MARGINS, strict=True):
        prompt, *completions = (rng.integers(3, 2000, n).astype(np.int32) for n in shape)
        rows.append(Example(prompt, tuple(completions), margin, Source("rows.jsonl", 1), (True, True)))
    return rows


@pytest.fixture(scope="session")
def demonstrations(pairs: list[Example]) -> list[Example]:
    return [Example(row.prompt_ids, row.completion_ids[:1], None, row.source, (True,)) for row in pairs]


@pytest.fixture
def descent(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Callable[..., TorchEngine]:
    """Engines whose step takes the gradient itself off float64 weights, so that it can be read off them exactly."""

    def build(kind: str = "language", max_grad_norm: float = float("inf")) -> TorchEngine:
        torch.manual_seed(0)
        load: Any = {"language": load_language_model, "scalar": load_scalar_model}[kind]
        model = load(ModelConfig(init=tiny_init), tokenizer, WHOLE).double()
        return engine_around(model, max_grad_norm)

    return build


@pytest.fixture
def engine_of() -> Callable[..., TorchEngine]:
    """An engine around a model of the test's own, of the same kind."""
    return engine_around


def engine_around(model: nn.Module, max_grad_norm: float = float("inf")) -> TorchEngine:
    optimizer = SGD(model.parameters(), lr=1.0)
    scheduler = ConstantLR(optimizer, factor=1.0)
    config = DistributedConfig(device=Device.cpu)
    return TorchEngine(model, optimizer, scheduler, config=config, max_grad_norm=max_grad_norm)

"""Steps that are counted: of each method a tiny model, a batch of short random texts and what it learns from them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from alignment.config.batch import BatchConfig, Layout
from alignment.data.batches import Batches, Packer
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.losses import (
    CrossEntropyLoss,
    DPOLoss,
    KTOLoss,
    MarginRankingLoss,
    ORPOLoss,
    PolicyLoss,
    ValueLoss,
)
from alignment.rl.experience import Experience
from alignment.rl.objectives import Actor, Critic
from alignment.training.kto import KTO
from alignment.training.objectives import DPO, ORPO, SFT, RewardRanking

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
METHODS = ("sft", "reward", "dpo", "orpo", "kto", "ppo actor", "ppo critic")
SCALAR, SINGLE = ("reward", "ppo critic"), ("sft", "kto")


def rows_of(groups: int, replies: int, times: int = 1) -> list[Example]:
    """So many prompts, `times` as long as they are short. Those with one reply are wanted and not, in turns."""
    rng = np.random.default_rng(0)

    def ids() -> np.ndarray:
        return rng.integers(3, 96, times * rng.integers(3, 20)).astype(np.int32)

    rows = [
        Example(ids(), tuple(ids() for _ in range(replies)), None, Source("rows.jsonl", 1), (True,) * replies)
        for _ in range(groups)
    ]
    return [replace(row, labels=(place % 2 == 0,)) if replies == 1 else row for place, row in enumerate(rows)]


def batch_of(groups: int, replies: int, layout: Layout, times: int = 1) -> Batch:
    return pack(rows_of(groups, replies, times), range(groups), layout=layout, pad_id=0)


def unit_of(method: str, groups: int, layout: Layout, times: int = 1) -> Batch | Experience:
    """What a step of the method learns from."""
    batch = batch_of(groups, 1 if method in SINGLE else 2, layout, times)
    if not method.startswith("ppo"):
        return batch
    logprobs, values = torch.full((batch.num_tokens,), -4.5), torch.zeros(batch.num_tokens)
    return Experience(batch, logprobs, logprobs, values + 1, values, values + 1)


def objective_of(method: str, groups: int, layout: Layout, times: int = 1) -> Any:
    made: dict[str, Callable[[], Any]] = {
        "sft": partial(SFT, CrossEntropyLoss()),
        "reward": partial(RewardRanking, MarginRankingLoss()),
        "dpo": partial(DPO, DPOLoss(), torch.zeros(groups, 2)),
        "orpo": partial(ORPO, ORPOLoss()),
        "kto": partial(_kto, groups, layout, times),
        "ppo actor": partial(Actor, PolicyLoss(), 1.0),
        "ppo critic": partial(Critic, ValueLoss()),
    }
    return made[method]()


def _kto(groups: int, layout: Layout, times: int) -> KTO:
    """Whose mismatched replies are its own ones: as long, and counted as what they are."""
    packer = Packer(BatchConfig(size=groups, max_tokens=10**6, layout=layout), 0, 0, 1)
    return KTO(KTOLoss(), torch.zeros(groups, 1), Batches(rows_of(groups, 1, times), packer, 0), torch.zeros(groups, 1))

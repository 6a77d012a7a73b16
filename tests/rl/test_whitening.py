"""Whitening over the global batch: two gloo processes against one. This file is also the program that they run."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

from alignment.config.data import DataConfig, Format, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.train import TrainConfig
from alignment.data.records import Record, Source
from alignment.data.tokenize import Example
from alignment.distributed.collectives import sum_over_ranks
from alignment.generation.generate import Reply
from alignment.generation.samples import Samples, places_of
from alignment.losses import whiten
from alignment.rl.experience import whiten_together
from alignment.rl.rewards import shape_scores

NOTHING = Example(np.arange(1), (np.arange(1),), None, Source("", 0), (True,))
RECORD = Record([], (), None, Source("", 0))
CUTS = {1: [(0, 40)], 2: [(0, 13), (13, 40)]}  # the values of each process; a ragged share
CONFIG = PPOConfig(
    model=ModelConfig(init={"model_type": "llama"}),
    data=DataConfig(format=Format.toy, train=TrainSource(limit=5)),
    train=TrainConfig(max_steps=1),
    reward=RewardShapingConfig(function="alignment.toy.gold", whiten=True, missing_eos_penalty=0.5),
    distributed=DistributedConfig(device=Device.cpu),
)


@dataclass
class Piece:
    """What whitening sees of an Experience."""

    advantages: torch.Tensor

    def counted_tokens(self) -> torch.Tensor:
        return torch.ones_like(self.advantages, dtype=torch.bool)


def whitened(start: int, end: int) -> dict[str, torch.Tensor]:
    """This process's share of 40 values, through each place that whitens."""
    everything = 3 + 5 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    values = everything[start:end]
    pieces = [Piece(part) for part in values.split(5)]
    whiten_together(pieces)  # type: ignore[arg-type]
    mine = places_of(40)
    replies = [[Reply(np.arange(4), place % 3 > 0, "")] for place in mine]
    samples = Samples([RECORD for _ in mine], [NOTHING for _ in mine], replies).joined()
    return {
        "loss": whiten(values, values > 0, across=sum_over_ranks),
        "advantages": torch.cat([piece.advantages for piece in pieces]),
        "scores": shape_scores(everything[:, None], samples, CONFIG),
    }


def test_two_processes_whiten_as_one(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    ended = [SimpleNamespace(error=process.communicate()[1], code=process.returncode) for process in processes]
    assert [each.code for each in ended] == [0, 0], ended[0].error + ended[1].error
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = whitened(*CUTS[1][0])
    for name in ("loss", "advantages"):  # each process has those of its own tokens
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), alone[name], rtol=1e-6, atol=1e-6)
    for part in parts:  # and the scores of all replies
        torch.testing.assert_close(part["scores"], alone["scores"], rtol=1e-6, atol=1e-6)
    apart = torch.cat([whitened(*cut)["advantages"] for cut in CUTS[2]])
    assert (apart - alone["advantages"]).abs().max() > 0.1


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    torch.save(whitened(*CUTS[2][rank]), folder / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # the group's threads may be late to let go of a tensor
